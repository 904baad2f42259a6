// Ends a text before a stop text, as charformer/sampling/stopping.py does.

export class StopText {
  /** `stop` is the stop text; an empty one ends nothing. */
  constructor(stop) {
    this.stop = Array.from(stop);
    this.held = []; // what may be the beginning of `stop`; once `stop` is reached, everything from its start
    this.isReached = false;
  }

  /** Add the next items, each with its `character`; return those that can now be shown. */
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

  /** Return the length of the longest ending of `held` that begins `stop`. */
  begun() {
    let length = Math.min(this.stop.length, this.held.length);
    const matches = (at) => this.held.at(at - length).character === this.stop[at];
    while (length && !this.stop.slice(0, length).every((_, at) => matches(at))) length--;
    return length;
  }
}
