// Probabilities of the next character by counting, for models with an n-gram prior, as in charformer/data/ngram.py,
// which describes the table. Numbers are rounded to float32 where NumPy rounds them.

const ARRAYS = [
  ["characters", Uint16Array, "contexts"],
  ["children", Uint16Array, "contexts"],
  ["entries", Uint16Array, "contexts"],
  ["backoffs", Uint16Array, "contexts"],
  ["following", Uint16Array, "ngrams"],
  ["shares", Uint8Array, "ngrams"],
];
const BACKOFF_STEPS = 65535, SHARE_STEPS = 16, FLOOR = 1e-12;

export class NgramTable {
  /** `content` holds the arrays one after the other; `sizes`, { contexts, ngrams }, gives their lengths. */
  constructor(content, sizes, vocabSize) {
    let at = content.byteOffset;
    for (const [name, Kind, size] of ARRAYS) {
      this[name] = new Kind(content.buffer, at, sizes[size]);
      at += this[name].byteLength;
    }
    this.vocabSize = vocabSize;
    this.firstChild = sums(this.children, 1);
    this.firstEntry = sums(this.entries, 0);
    this.backoff = Float32Array.from(this.backoffs, (steps) => steps / BACKOFF_STEPS);
    this.share = this.scaledShares();
  }

  /** Return the share that each entry adds to its character, so that a context's entries and its backoff sum to one. */
  scaledShares() {
    const relative = Array.from({ length: 256 }, (_, code) => 2 ** (-code / SHARE_STEPS));
    const shares = new Float32Array(this.shares.length);
    for (let context = 0; context < this.entries.length; context++) {
      const start = this.firstEntry[context], end = this.firstEntry[context + 1];
      let sum = 0;
      for (let entry = start; entry < end; entry++) sum += relative[this.shares[entry]];
      const factor = (1 - this.backoffs[context] / BACKOFF_STEPS) / sum;
      for (let entry = start; entry < end; entry++) shares[entry] = relative[this.shares[entry]] * factor;
    }
    return shares;
  }

  /** Write the probabilities of the character after the first `end` ids of `text` to `row`, a Float32Array. */
  fill(row, text, end) {
    row.fill(this.backoff[0] / this.vocabSize);
    this.addShares(row, 0);
    let context = this.child(0, text[end - 1]);
    for (let back = 2; context !== -1; back++) {
      for (let id = 0; id < row.length; id++) row[id] *= this.backoff[context];
      this.addShares(row, context);
      context = back <= end ? this.child(context, text[end - back]) : -1;
    }
    for (let id = 0; id < row.length; id++) row[id] = Math.max(row[id], FLOOR);
  }

  addShares(row, context) {
    const end = this.firstEntry[context + 1];
    for (let entry = this.firstEntry[context]; entry < end; entry++) row[this.following[entry]] += this.share[entry];
  }

  /** Find `context` with `character` in front of it by binary search; return -1 if the table has none. */
  child(context, character) {
    let low = this.firstChild[context], high = this.firstChild[context + 1];
    const end = high;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.characters[middle] < character) low = middle + 1;
      else high = middle;
    }
    return low < end && this.characters[low] === character ? low : -1;
  }
}

/** Return `first`, then, for each count, `first` plus the sum of the counts so far. */
function sums(counts, first) {
  const found = new Uint32Array(counts.length + 1);
  found[0] = first;
  for (let at = 0; at < counts.length; at++) found[at + 1] = found[at] + counts[at];
  return found;
}
