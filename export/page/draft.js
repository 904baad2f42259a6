// Speculative sampling, as in charformer/sampling/speculation.py: a table of which character follows which others
// proposes characters, and one run of the model checks them all. In 8 and 4 bits a text depends on which characters are
// read together, so the page must propose the same characters as the command to write the same text.

import { isGreedy, pick } from "./sampler.js";

/** The table of a model's n-gram prior, which proposes what the model then corrects. */
export class PriorDraft {
  /** `order` is the number of characters that the table reads at most. */
  constructor(table, order) {
    this.table = table;
    this.order = order;
  }

  /** Return the ids that the rows of noise pick, one after the other, after the ids in `context`. */
  propose(context, noise, temperature) {
    const text = context.slice(-this.order);
    const row = new Float32Array(this.table.vocabSize);
    const greedy = isGreedy(temperature);
    return noise.map((rowNoise) => {
      this.table.fill(row, text, text.length);
      const id = greedy ? pick(row, null) : pick(Float64Array.from(row, (p) => Math.log(p) / temperature), rowNoise);
      text.push(id);
      return id;
    });
  }
}

/** A table for a model without a prior: log-probabilities of the next character after up to `order` others. */
export class Draft {
  /** `content` holds R keys of 64 bits, then R rows of one byte per character; `rows` is R. */
  constructor(content, { rows, order, stepsPerNat }, vocabSize) {
    const keys = new BigInt64Array(content.buffer, content.byteOffset, rows);
    this.rowOf = new Map(Array.from(keys, (key, row) => [Number(key), row]));
    this.rows = content.subarray(8 * rows);
    this.order = order;
    this.stepsPerNat = stepsPerNat;
    this.vocabSize = vocabSize;
  }

  /** Return the ids that the rows of noise pick, one after the other, after the ids in `context`. */
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
