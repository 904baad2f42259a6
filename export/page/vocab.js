// Characters and their ids, as in charformer/data/vocab.py.

const NAMES = { "\n": "new line", "\t": "tab", " ": "space" };
const MARKS = { "\n": "↵", "\t": "⇥", " ": "␣" };

export class Vocab {
  constructor(codePoints) {
    this.characters = codePoints.map((code) => String.fromCodePoint(code));
    this.idOf = new Map(this.characters.map((character, id) => [character, id]));
  }

  /** Return the ids of the known characters, and the distinct unknown characters. */
  encode(text) {
    const characters = Array.from(text.replaceAll("\r\n", "\n").replaceAll("\r", "\n"));
    const unknown = [...new Set(characters.filter((character) => !this.idOf.has(character)))];
    return { ids: characters.map((character) => this.idOf.get(character)).filter((id) => id !== undefined), unknown };
  }

  /** The prompt used for an empty one: a newline, or the first character where there is none. */
  get opening() {
    return [this.idOf.get("\n") ?? 0];
  }

  decode(ids) {
    return ids.map((id) => this.characters[id]).join("");
  }
}

/** Return a character in visible form. */
export function mark(character) {
  return MARKS[character] ?? (/\p{C}|\p{Z}/u.test(character) ? codeOf(character) : character);
}

/** Return a character as a screen reader can speak it. */
export function spoken(character) {
  return NAMES[character] ?? (/\p{C}|\p{Z}/u.test(character) ? codeOf(character) : character);
}

/** Return a character's code point, such as U+00E9. */
export function codeOf(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}
