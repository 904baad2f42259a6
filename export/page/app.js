// The page: its form, the text that is being written, and the alternatives to each character.

import { drawLosses } from "./chart.js";
import { Draft, PriorDraft } from "./draft.js";
import { Engine, loadRuntime, unpacked } from "./engine.js";
import { NgramTable } from "./ngram.js";
import { StopText } from "./stop.js";
import { TextView } from "./text.js";
import { codeOf, mark, spoken, Vocab } from "./vocab.js";
import { Writer } from "./writer.js";

const LARGEST_SEED = 2n ** 64n - 1n;
const FRAME = 12; // milliseconds of work between two updates of the page and checks of its buttons

const $ = (id) => document.getElementById(id);
const description = JSON.parse($("description").textContent);
const vocab = new Vocab(description.codePoints);
const view = new TextView($("text"), showAlternatives);

let engine = null, draft = null;
let writer = null; // the writer of the text on the page
let written = []; // its new characters, each { character, id, alternatives }
let held = []; // the characters after them that a stop text keeps from being shown
let seed = 0n;
let stopped = false;

async function load() {
  const runtime = await loadRuntime();
  const size = vocab.characters.length;
  const ngram = description.ngram && new NgramTable(await unpacked("ngram"), description.ngram, size);
  engine = await Engine.create(runtime, await unpacked("model"), description, ngram);
  if (ngram) draft = new PriorDraft(ngram, description.model.ngram_order);
  else if (description.draft) draft = new Draft(await unpacked("draft"), description.draft, size);
}

/** Return the form's settings, or null once the browser has shown what is wrong with them. */
function readSettings() {
  const seedField = $("seed");
  seedField.setCustomValidity(seedField.value && /^\d+$/.test(seedField.value) && BigInt(seedField.value) > LARGEST_SEED
    ? `At most ${LARGEST_SEED}` : "");
  if (!$("form").checkValidity()) {
    $("settings").open = true; // a field that is folded away cannot show its message
    $("form").reportValidity();
    return null;
  }
  const topK = $("top-k").valueAsNumber, topP = $("top-p").valueAsNumber;
  return {
    length: $("length").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    topK: topK > 0 ? topK : null,
    topP: topP > 0 && topP < 1 ? topP : null,
    stop: $("stop-text").value.replaceAll("\\n", "\n"),
    seed: seedField.value ? BigInt(seedField.value) : BigInt(crypto.getRandomValues(new Uint32Array(1))[0]),
  };
}

/** Write a new text. */
async function write() {
  const settings = readSettings();
  if (settings === null) return;
  const { ids, unknown } = vocab.encode($("prompt").value);
  $("unknown").textContent = unknown.length
    ? `Left out, since the model never saw them: ${unknown.slice(0, 10).map((one) => `${mark(one)} (${codeOf(one)})`).join(", ")}`
    : "";
  const prompt = ids.length ? ids : vocab.opening;
  seed = settings.seed;
  written = [];
  held = [];
  view.inspect(null);
  view.clear(vocab.decode(prompt));
  writer = new Writer(engine, draft, description, prompt, seed);
  await goOn(settings);
}

/** Write more of the text, up to the length in `settings` or until the user stops it. */
async function goOn(settings) {
  stopped = false;
  setBusy(true);
  const began = performance.now(), before = written.length, stop = new StopText(settings.stop);
  let pause = began + FRAME;
  show(held);
  try {
    for await (const made of writer.write(settings.length, settings)) {
      if (writer.position === made.length) performance.mark("first character");
      show(stop.push(made.map((one) => ({ character: vocab.characters[one.id], ...one }))));
      if (performance.now() > pause) {
        await nextTask();
        pause = performance.now() + FRAME;
      }
      if (stopped || stop.isReached) break;
    }
    held = stop.held;
    if (!stop.isReached) show(held.splice(0));
    showStatus(written.length - before, performance.now() - began);
  } catch (error) {
    showError(error);
  }
  setBusy(false);
}

/** Put new characters on the page. */
function show(characters) {
  written.push(...characters);
  view.append(characters.map(({ character, id, alternatives }) => ({
    character,
    probability: alternatives.find(([other]) => other === id)[1],
  })));
}

/** Let the page draw itself and handle its buttons; timers would wait for seconds in a background tab. */
function nextTask() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

function setBusy(busy) {
  const focused = document.activeElement;
  $("write").hidden = busy;
  $("stop").hidden = !busy;
  $("continue").disabled = busy || writer === null;
  if (busy) $("status").textContent = "Writing …";
  if (busy && [$("write"), $("continue")].includes(focused)) $("stop").focus();
  if (!busy && focused === $("stop")) $("write").focus();
}

function showStatus(count, milliseconds) {
  const speed = count ? ` at ${Math.round(count / milliseconds * 1000).toLocaleString("en")} a second` : "";
  const again = document.createElement("button");
  Object.assign(again, { type: "button", className: "link", textContent: `seed ${seed}`, title: "Keep this seed" });
  again.addEventListener("click", () => {
    $("settings").open = true;
    $("seed").value = seed;
    $("seed").focus();
  });
  $("status").replaceChildren(`${written.length.toLocaleString("en")} characters, ${count.toLocaleString("en")}${speed}, `, again);
}

function showError(error) {
  console.error(error);
  $("alert").textContent = `The model cannot run here: ${error?.message ?? error}. It takes a browser of 2023 or later.`;
  $("alert").hidden = false;
}

/** Show the alternatives to the new character `index`; null shows how to see them. */
function showAlternatives(index) {
  $("alternatives").classList.toggle("empty", index === null);
  if (index === null) {
    $("place").textContent = "Point at a character of the text, or go there with Tab and press the arrow keys: here is what else it might have been.";
    $("choices").replaceChildren();
    $("heard").textContent = "";
    return;
  }
  const { id, alternatives } = written[index];
  $("place").textContent = `Character ${(index + 1).toLocaleString("en")} of ${written.length.toLocaleString("en")}`;
  $("choices").replaceChildren(...alternatives.map(([other, probability]) => {
    const item = document.createElement("li");
    item.className = other === id ? "picked" : "";
    const parts = ["character", "track", "share"].map((name) => {
      const part = document.createElement("span");
      part.className = name;
      return part;
    });
    parts[0].textContent = mark(vocab.characters[other]);
    const fill = document.createElement("i");
    fill.style.width = `${100 * probability}%`;
    parts[1].append(fill);
    parts[2].textContent = percent(probability);
    item.append(...parts);
    return item;
  }));
  const said = alternatives.map(([other, probability]) => `${spoken(vocab.characters[other])} ${percent(probability)}`);
  $("heard").textContent = `${spoken(vocab.characters[id])}, of ${said.join(", ")}`;
}

function percent(probability) {
  return probability < 0.001 ? "< 0.1 %" : `${(100 * probability).toFixed(probability < 0.1 ? 1 : 0)} %`;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("write").hidden && !$("write").disabled) write();
});
$("form").noValidate = true; // readSettings validates, once the folded part of the form is open
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("stop").addEventListener("click", () => (stopped = true));
$("continue").addEventListener("click", () => {
  const settings = readSettings();
  if (settings !== null) goOn(settings);
});
$("shade").addEventListener("change", () => $("page").classList.toggle("shaded", $("shade").checked));
$("previous").addEventListener("click", () => view.step(-1));
$("next").addEventListener("click", () => view.step(1));
$("close").addEventListener("click", () => {
  view.inspect(null);
  $("text").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopped = true;
});

showAlternatives(null);
if (description.losses.length) drawLosses($("losses"), description.losses);
else $("curve").hidden = true;

try {
  await load();
  $("write").disabled = false;
  $("write").textContent = "Write";
  await write();
} catch (error) {
  showError(error);
}
