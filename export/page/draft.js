// Speculative sampling, as charformer/sampling/speculation.py does it: a table of which character follows which three
// proposes characters, and one run of the model checks them all. In 8 and 4 bits a text depends on what is read
// together, so the page must propose what the command proposes to write what the command writes.

import { isGreedy, pick } from "./sampler.js";

/** Log-probabilities of the next character behind up to `order` others. */
export class Draft {
  /** `content`: R keys of 64 bits, then R rows of a byte a character; `rows` is R. */
  constructor(content, { rows, order, stepsPerNat }, vocabSize) {
    const keys = new BigInt64Array(content.buffer, content.byteOffset, rows);
    this.rowOf = new Map(Array.from(keys, (key, row) => [Number(key), row]));
    this.rows = content.subarray(8 * rows);
    this.order = order;
    this.stepsPerNat = stepsPerNat;
    this.vocabSize = vocabSize;
  }

  /** What the rows of noise pick, one after the other, behind the ids in `context`. */
  propose(context, noise, temperature) {
    const base = this.vocabSize + 1;
    const longest = base ** (this.order - 1);
    const greedy = isGreedy(temperature);
    const scale = greedy ? -1 : -1 / (this.stepsPerNat * temperature);
    let key = 0;
    for (const id of context.slice(-this.order)) key = key * base + id + 1;
    return noise.map((rowNoise) => {
      let known = key;
      for (let modulus = longest; !this.rowOf.has(known); modulus = Math.floor(modulus / base)) known %= modulus;
      const start = this.rowOf.get(known) * this.vocabSize;
      const row = Float64Array.from(this.rows.subarray(start, start + this.vocabSize), (steps) => steps * scale);
      const id = pick(row, greedy ? null : rowNoise);
      key = (key % longest) * base + id + 1;
      return id;
    });
  }
}
