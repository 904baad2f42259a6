// The noise that picks characters: that of charformer/sampling/sampler.py, up to the rounding of two logarithms.
//
// Philox 4x64 with ten rounds (Salmon et al. 2011). JavaScript's integers end at 2**53, and BigInt is twenty times too
// slow, so a 64-bit number is two halves of 32 bits in a Uint32Array, the low half first.

const ROUNDS = 10;
const MULTIPLIERS = Uint32Array.of(0xe14c6c93, 0xd2e7470e, 0x95121157, 0xca5a8263);
const INCREMENTS = Uint32Array.of(0x7f4a7c15, 0x9e3779b9, 0x84caa73b, 0xbb67ae85); // of the key, once a round
const TWO_32 = 2 ** 32;

/** Return the high half of the product of two 32-bit numbers. */
function highProduct(a, b) {
  const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const other = a0 * b1 + (middle & 0xffff);
  return a1 * b1 + (middle >>> 16) + (other >>> 16);
}

/** Write the 128-bit product of the 64-bit numbers at a[i] and b[j] to `out`, (4,), the lowest part first. */
function multiply(a, i, b, j, out) {
  const al = a[i], ah = a[i + 1], bl = b[j], bh = b[j + 1];
  const second = highProduct(al, bl) + (Math.imul(ah, bl) >>> 0) + (Math.imul(al, bh) >>> 0);
  const third = highProduct(ah, bl) + highProduct(al, bh) + (Math.imul(ah, bh) >>> 0) + Math.floor(second / TWO_32);
  out[0] = Math.imul(al, bl);
  out[1] = second;
  out[2] = third;
  out[3] = highProduct(ah, bh) + Math.floor(third / TWO_32);
}

/** Add the 64-bit number at b[i] to the one at a[i], modulo 2**64. */
function add(a, b, i) {
  const low = a[i] + b[i];
  a[i] = low;
  a[i + 1] = a[i + 1] + b[i + 1] + (low >= TWO_32 ? 1 : 0);
}

/** The Gumbel noise of a seed's first text: a function of the seed, the position and the size of the vocabulary alone. */
export class Noise {
  /** `seed` is a BigInt from 0 to 2**64 - 1. */
  constructor(seed, vocabSize) {
    this.vocabSize = vocabSize;
    this.seed = Uint32Array.of(Number(seed & 0xffffffffn), Number(seed >> 32n), 0, 0);
    this.counter = new Uint32Array(8);
    this.key = new Uint32Array(4);
    this.first = new Uint32Array(4);
    this.second = new Uint32Array(4);
  }

  /** Return the noise that picks the new character `position`, a Float64Array of the vocabulary's size. */
  row(position) {
    const row = new Float64Array(this.vocabSize);
    const blocks = Math.ceil(this.vocabSize / 4); // of four numbers; a position begins a block of its own
    for (let block = 0; block < blocks; block++) {
      this.fill(position * blocks + block + 1); // NumPy increments the counter before it makes a block
      for (let lane = 0, id = 4 * block; lane < 4 && id < row.length; lane++, id++) {
        const low = this.counter[2 * lane], high = this.counter[2 * lane + 1];
        const uniform = (high * 2 ** 20 + (low >>> 12) + 0.5) * 2 ** -52; // strictly between 0 and 1
        row[id] = -Math.log(-Math.log(uniform));
      }
    }
    return row;
  }

  /** Write the four 64-bit numbers of block `number`, which is below 2**53, to `counter`. */
  fill(number) {
    const { counter, key, first, second } = this;
    counter.fill(0);
    counter[0] = number; // modulo 2**32, as a Uint32Array stores it
    counter[1] = Math.floor(number / TWO_32);
    key.set(this.seed);
    for (let round = 0; round < ROUNDS; round++) {
      if (round) {
        add(key, INCREMENTS, 0);
        add(key, INCREMENTS, 2);
      }
      multiply(MULTIPLIERS, 0, counter, 0, first);
      multiply(MULTIPLIERS, 2, counter, 4, second);
      for (let half = 0; half < 2; half++) {
        const one = second[2 + half] ^ counter[2 + half] ^ key[half];
        const three = first[2 + half] ^ counter[6 + half] ^ key[2 + half];
        counter[half] = one;
        counter[2 + half] = second[half];
        counter[4 + half] = three;
        counter[6 + half] = first[half];
      }
    }
  }
}
