// Next-character logits from the model with ONNX Runtime Web, as in charformer/sampling/onnx_engine.py, for one text.
//
// The runtime copies the cache of keys and values in and out at each run, since JavaScript cannot access its memory.

/** Decode base64. */
function decoded(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

/** Return the bytes of the page's element `id`, which holds base64 of gzip. */
export async function unpacked(id) {
  const packed = decoded(document.getElementById(id).textContent);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Load ONNX Runtime Web from the page itself, on one thread: a page opened from a file gets no more. */
export async function loadRuntime() {
  const [script, wasm] = await Promise.all([unpacked("runtime-script"), unpacked("runtime-wasm")]);
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const runtime = await import(url);
  URL.revokeObjectURL(url);
  runtime.env.wasm.wasmBinary = wasm.buffer;
  runtime.env.wasm.numThreads = 1;
  runtime.env.logLevel = "fatal";
  return runtime;
}

/** Extends one text; past `block_size` the context slides, or its older half is dropped and the rest read again. */
export class Engine {
  /** `ngram` is the table of a model with an n-gram prior, else null. */
  static async create(runtime, model, description, ngram) {
    const session = await runtime.InferenceSession.create(model, { executionProviders: ["wasm"] });
    return new Engine(runtime.Tensor, session, description, ngram);
  }

  constructor(Tensor, session, { model, cacheSize, headWidth }, ngram) {
    this.Tensor = Tensor;
    this.session = session;
    this.model = model;
    this.cacheSize = cacheSize;
    this.headWidth = headWidth; // as the graph pads it
    this.ngram = ngram;
    this.cache = {};
    this.text = []; // all ids so far
    this.length = 0; // the number of the last ids that are in the cache
  }

  /** The number of characters that `extend` takes at once: as many as fit or slide in; at 0 it still takes one. */
  get room() {
    return this.cacheSize - (this.model.rope_base ? this.model.block_size - 1 : this.length);
  }

  /** Begin with `ids`, of which the last `block_size` count; return the logits after the last one. */
  async start(ids) {
    const shape = [1, this.model.n_head, this.cacheSize, this.headWidth];
    const size = shape.reduce((product, length) => product * length);
    for (const name of this.session.inputNames.filter((name) => name.startsWith("past_"))) {
      this.cache[name] = new this.Tensor("float32", new Float32Array(size), shape);
    }
    this.text = ids.slice(0, -this.model.block_size);
    this.length = 0;
    return (await this.append(ids.slice(-this.model.block_size))).at(-1);
  }

  /** Append ids, more than one only where there is `room`; return the logits after each. */
  async extend(ids) {
    if (this.length + ids.length > this.cacheSize) {
      if (!this.model.rope_base) {
        const kept = this.text.splice(this.text.length - Math.floor(this.model.block_size / 2));
        this.length = 0;
        return (await this.append([...kept, ...ids])).slice(-ids.length);
      }
      this.slide();
    }
    return this.append(ids);
  }

  /** Forget the last `count` characters of the last `extend`. */
  rewind(count) {
    this.text.length -= count;
    this.length -= count;
  }

  async append(ids) {
    const { Tensor, length } = this;
    const end = length + ids.length, size = this.model.vocab_size;
    this.text.push(...ids);
    this.length = end;
    const prior = this.ngram && { prior: new Tensor("float32", this.priorRows(ids.length), [1, ids.length, size]) };
    const outputs = await this.session.run({
      ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      positions: new Tensor("int64", BigInt64Array.from(ids, (_, at) => BigInt(length + at)), [ids.length]),
      lengths: new Tensor("int32", Int32Array.of(end - 1), [1]),
      total: new Tensor("int32", Int32Array.of(end), []),
      ...prior,
      ...this.cache,
    });
    for (const name of Object.keys(this.cache)) this.cache[name] = outputs[name.replace("past_", "present_")];
    const { data } = outputs.logits;
    return ids.map((_, at) => data.subarray(at * size, (at + 1) * size));
  }

  /** Return the n-gram prior after each of the last `count` ids, (count, vocabulary). */
  priorRows(count) {
    const size = this.model.vocab_size, rows = new Float32Array(count * size);
    for (let at = 0; at < count; at++) {
      this.ngram.fill(rows.subarray(at * size, (at + 1) * size), this.text, this.text.length - count + at + 1);
    }
    return rows;
  }

  /** Move the last `block_size` - 1 rotary positions of a full cache to the front, and forget the others. */
  slide() {
    const kept = this.model.block_size - 1, first = this.length - kept;
    const rowsOfHead = this.cacheSize, width = this.headWidth;
    const turn = turns(this.model, first);
    for (const [name, { data }] of Object.entries(this.cache)) {
      for (let head = 0; head < this.model.n_head; head++) {
        const start = head * rowsOfHead * width;
        data.copyWithin(start, start + first * width, start + (first + kept) * width);
        if (name.startsWith("past_keys")) turnBack(data.subarray(start, start + kept * width), width, turn);
      }
    }
    this.length = kept;
  }
}

/** Return the cosines and sines by which `slots` positions rotate the pairs of a head, in float32. */
function turns({ n_embd, n_head, rope_base }, slots) {
  const pairs = Math.floor(n_embd / n_head / 2);
  const angles = Array.from({ length: pairs }, (_, pair) => slots * rope_base ** (-pair / pairs));
  return { cos: Float32Array.from(angles, Math.cos), sin: Float32Array.from(angles, Math.sin) };
}

/** Rotate keys, rows of `width`, back in place: pairs of channels half a head apart, rounded to float32. */
function turnBack(keys, width, { cos, sin }) {
  const half = width / 2, f = Math.fround;
  for (let row = 0; row < keys.length; row += width) {
    for (let pair = 0; pair < cos.length; pair++) {
      const a = keys[row + pair], b = keys[row + half + pair];
      keys[row + pair] = f(a * cos[pair]) + f(b * sin[pair]);
      keys[row + half + pair] = f(b * cos[pair]) - f(a * sin[pair]);
    }
  }
}
