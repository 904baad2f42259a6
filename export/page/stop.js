// Ends a text before another one, as charformer/sampling/stopping.py does.

export class StopText {
  /** `stop` is where to end; the empty text ends nothing. */
  constructor(stop) {
    this.stop = Array.from(stop);
    this.held = []; // what may be the beginning of `stop`, and once that is reached all from there on
    this.isReached = false;
  }

  /** Take in the next items, each with its `character`; returns those that can be shown by now. */
  push(items) {
    const shown = [];
    for (const item of items) {
      this.held.push(item);
      if (this.isReached) continue;
      const begun = this.begun();
      this.isReached = begun > 0 && begun === this.stop.length;
      shown.push(...this.held.splice(0, this.held.length - begun));
    }
    return shown;
  }

  /** The length of the longest ending of what is held that begins `stop`. */
  begun() {
    let length = Math.min(this.stop.length, this.held.length);
    const matches = (at) => this.held.at(at - length).character === this.stop[at];
    while (length && !this.stop.slice(0, length).every((_, at) => matches(at))) length--;
    return length;
  }
}
