// Writes a text, a few characters at a time, as charformer-sample --onnx does.

import { Noise } from "./noise.js";
import { alternatives, isGreedy, pick, scaledLogits } from "./sampler.js";

/** Writes one text, which can be stopped after any character and continued. */
export class Writer {
  /** `prompt` holds at least one id, `seed` is a BigInt; `draft` may be null. */
  constructor(engine, draft, description, prompt, seed) {
    this.engine = engine;
    this.draft = draft;
    this.proposals = description.proposals;
    this.noise = new Noise(seed, description.model.vocab_size);
    this.ids = prompt;
    this.position = 0; // of the next character, counted from the prompt's end
  }

  /** Write `count` characters; yield the next ones as [{ id, alternatives }, ...]. */
  async *write(count, settings) {
    const end = this.position + count;
    while (this.position < end) {
      const room = Math.max(0, Math.min(this.proposals, this.engine.room - 1, end - this.position - 1));
      const noise = Array.from({ length: this.position ? room + 1 : 1 }, (_, at) => this.noise.row(this.position + at));
      const proposed = this.position && room ? this.draft.propose(this.ids, noise.slice(0, room), settings.temperature) : [];
      const logits = this.position
        ? await this.engine.extend([this.ids.at(-1), ...proposed])
        : [await this.engine.start(this.ids)];
      const made = this.picked(logits, noise, proposed, settings);
      this.engine.rewind(logits.length - made.length);
      for (const { id } of made) this.ids.push(id);
      this.position += made.length;
      yield made;
    }
  }

  /** Return the characters that the rows of logits pick, up to the first that was not proposed. */
  picked(logits, noise, proposed, settings) {
    const made = [];
    for (const [at, row] of logits.entries()) {
      const scaled = scaledLogits(row, settings);
      const id = pick(scaled, isGreedy(settings.temperature) ? null : noise[at]);
      made.push({ id, alternatives: alternatives(scaled, id) });
      if (id !== proposed[at]) break;
    }
    return made;
  }
}
