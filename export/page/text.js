// The text on the page: one piece for readers and screen readers alike, whose characters can be inspected.
//
// Marks on it (the prompt, what surprised the model, the inspected character) are highlights of the CSS Custom
// Highlight API, which leave the text in one piece; without that API there are no marks, and everything else works.

const SURPRISES = [1, 3, 5]; // bits from which a character is shaded, each darker than the one before

export class TextView {
  /** `onInspect(index)` is called with the number of a new character, or null. */
  constructor(element, onInspect) {
    this.element = element;
    this.onInspect = onInspect;
    this.clear("");
    element.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && !event.buttons) this.inspectAt(event);
    });
    element.addEventListener("click", (event) => this.inspectAt(event));
    element.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Start again with a prompt. */
  clear(prompt) {
    this.node = document.createTextNode(prompt);
    this.element.replaceChildren(this.node);
    this.starts = []; // where in the node each new character begins
    this.inspected = null;
    this.marks = globalThis.Highlight ? { prompt: new Highlight(), inspected: new Highlight() } : null;
    SURPRISES.forEach((_, level) => this.marks && (this.marks[`surprise-${level + 1}`] = new Highlight()));
    if (this.marks) this.marks.inspected.priority = 1; // above the shades
    for (const [name, highlight] of Object.entries(this.marks ?? {})) CSS.highlights.set(name, highlight);
    if (prompt) this.marks?.prompt.add(this.range(0, prompt.length));
  }

  /** Append characters, each with its probability. */
  append(characters) {
    let end = this.node.length;
    this.node.appendData(characters.map(({ character }) => character).join(""));
    for (const { character, probability } of characters) {
      const level = SURPRISES.filter((bits) => -Math.log2(probability) >= bits).length;
      if (level) this.marks?.[`surprise-${level}`].add(this.range(end, end + character.length));
      this.starts.push(end);
      end += character.length;
    }
  }

  range(start, end) {
    const [startContainer, endContainer] = [this.node, this.node];
    return new StaticRange({ startContainer, startOffset: start, endContainer, endOffset: end });
  }

  /** Return the place of the new character `index` in the node: [start, end]. */
  place(index) {
    return [this.starts[index], this.starts[index + 1] ?? this.node.length];
  }

  /** Return the boxes of the new character `index` in the window: several where a line breaks within it. */
  boxes(index) {
    const range = document.createRange(), [start, end] = this.place(index);
    range.setStart(this.node, start);
    range.setEnd(this.node, end);
    return [...range.getClientRects()];
  }

  /** Inspect the new character `index`, or none for null. */
  inspect(index) {
    if (index === this.inspected) return;
    this.inspected = index;
    this.marks?.inspected.clear();
    if (index !== null) this.marks?.inspected.add(this.range(...this.place(index)));
    this.onInspect(index);
  }

  /**
   * Inspect the character `by` places further on, at first counted from before or after the text, and scroll it into
   * the window's upper half if it is not there.
   */
  step(by) {
    if (!this.starts.length) return;
    const last = this.starts.length - 1, from = this.inspected ?? (by < 0 ? last + 1 : -1);
    this.inspect(Math.min(last, Math.max(0, from + by)));
    const box = this.boxes(this.inspected)[0];
    if (box && (box.top < 0 || box.bottom > innerHeight / 2)) scrollBy(0, box.top - innerHeight / 3);
  }

  inspectAt({ clientX, clientY }) {
    const index = this.indexAt(clientX, clientY);
    if (index !== null) this.inspect(index);
  }

  /** Return the number of the new character at a point of the window, or null. */
  indexAt(x, y) {
    const caret = document.caretPositionFromPoint?.(x, y);
    const range = caret ? null : document.caretRangeFromPoint?.(x, y);
    const node = caret?.offsetNode ?? range?.startContainer;
    if (node !== this.node) return null;
    const offset = caret?.offset ?? range.startOffset;
    const after = this.starts.findLastIndex((start) => start <= offset); // the caret is before or after a character
    const holds = (box) => x >= box.left && x < box.right && y >= box.top && y < box.bottom;
    for (const index of [after, after - 1]) {
      if (index >= 0 && this.boxes(index).some(holds)) return index;
    }
    return null;
  }

  onKey(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.step(steps[event.key]);
  }
}
