// The loss curve, as SVG that takes the page's colours.

const WIDTH = 340, HEIGHT = 190;
const BOX = { left: 34, right: WIDTH - 12, top: 10, bottom: HEIGHT - 34 };
const SERIES = [["train", "training"], ["validation", "validation"]];

/** Draw rows of { step, characters, train, validation } in `svg`, without the untrained one if two others remain. */
export function drawLosses(svg, rows) {
  const shown = rows.filter(({ step }) => step > 0).length > 1 ? rows.filter(({ step }) => step > 0) : rows;
  const losses = shown.flatMap(({ train, validation }) => [train, validation]);
  const yTicks = ticks(Math.min(...losses), Math.max(...losses), 4);
  const xTicks = ticks(0, Math.max(...shown.map(({ characters }) => characters)) / 1e6, 4);
  const x = (characters) => scaled(characters / 1e6, xTicks, BOX.left, BOX.right);
  const y = (loss) => scaled(loss, yTicks, BOX.bottom, BOX.top);
  const decimals = (list) => Math.max(0, -Math.floor(Math.log10(list[1] - list[0]) + 1e-9));
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  for (const tick of yTicks) {
    line(svg, "grid", [[BOX.left, y(tick)], [BOX.right, y(tick)]]);
    label(svg, tick.toFixed(decimals(yTicks)), BOX.left - 6, y(tick) + 4, "end");
  }
  for (const tick of xTicks) label(svg, tick.toFixed(decimals(xTicks)), x(tick * 1e6), BOX.bottom + 15, "middle");
  label(svg, "million characters seen", (BOX.left + BOX.right) / 2, HEIGHT - 4, "middle");
  for (const [key] of SERIES) line(svg, key, shown.map((row) => [x(row.characters), y(row[key])]));
  const best = shown.reduce((least, row) => (row.validation < least.validation ? row : least));
  svg.append(element("circle", { cx: x(best.characters), cy: y(best.validation), r: 3.5, class: "best" }));
  const first = shown[0];
  svg.setAttribute(
    "aria-label",
    `Loss in nats a character against characters seen. Validation falls from ${first.validation.toFixed(2)} ` +
      `to ${best.validation.toFixed(3)} at step ${best.step}.`,
  );
}

/** Return about `count` round numbers that enclose `least` and `most`. */
function ticks(least, most, count) {
  const rough = (most - least || 1) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5].find((times) => times * unit >= rough) ?? 10);
  const first = Math.floor(least / step), last = Math.ceil(most / step);
  return Array.from({ length: Math.max(1, last - first) + 1 }, (_, at) => (first + at) * step);
}

function scaled(value, list, from, to) {
  return from + ((value - list[0]) / (list.at(-1) - list[0])) * (to - from);
}

function line(svg, name, points) {
  svg.append(element("polyline", { points: points.map((point) => point.map((at) => at.toFixed(1)).join()).join(" "), class: name }));
}

function label(svg, text, x, y, anchor) {
  const node = element("text", { x, y, "text-anchor": anchor });
  node.textContent = text;
  svg.append(node);
}

function element(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}
