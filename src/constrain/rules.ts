/** The rules of one grammar, in the library's EBNF. */
import { perigeeError } from '../errors.ts';

/** Rules of one grammar: each costs a scan of the vocabulary, so that the largest compile takes seconds, not minutes. */
const mostRules = 3000;
const mostCharacters = 400_000;

export class Rules {
  readonly #lines: string[] = [];
  readonly #names = new Map<string, string>();
  #characters = 0;

  /** A rule for `body`; the same body gives the same rule. */
  add(hint: string, body: string): string {
    const known = this.#names.get(body);
    if (known !== undefined) return known;
    const name = this.reserve(hint);
    this.#names.set(body, name);
    this.define(name, body);
    return name;
  }

  /** A name whose rule follows, for rules that refer to themselves. */
  reserve(hint: string): string {
    if (this.#lines.length >= mostRules) {
      throw perigeeError('SCHEMA_TOO_COSTLY', { why: `it needs more than ${mostRules} grammar rules` });
    }
    this.#lines.push('');
    return `${hint}_${this.#lines.length}`;
  }

  define(name: string, body: string): void {
    this.#characters += body.length;
    if (this.#characters > mostCharacters) {
      throw perigeeError('SCHEMA_TOO_COSTLY', { why: `its grammar has more than ${mostCharacters} characters` });
    }
    this.#lines.push(`${name} ::= ${body}`);
  }

  /** The grammar that begins with `start`. */
  text(start: string): string {
    return [`root ::= ${start}`, ...this.#lines.filter((line) => line !== '')].join('\n');
  }
}

/** `text` as a terminal. */
export function literal(text: string): string {
  return `"${Array.from(text, escapeCharacter).join('')}"`;
}

function escapeCharacter(character: string): string {
  const code = character.codePointAt(0)!;
  if (character === '"' || character === '\\') return `\\${character}`;
  if (code >= 0x20 && code < 0x7f) return character;
  return codeEscape(code);
}

/** One code point in a terminal or a class. */
export function codeEscape(code: number): string {
  return `\\U${code.toString(16).padStart(8, '0')}`;
}

/** `item` from `least` to `most` times, with `comma` between; `alone`: before each as well, unless nothing stands in front. */
export function repeated(item: string, comma: string, least: number, most: number, alone: boolean): string {
  const times = (from: number, to: number) => `{${from},${to === Infinity ? '' : to}}`;
  if (!alone) return `(${comma} ${item})${times(least, most)}`;
  const list = `${item} (${comma} ${item})${times(Math.max(0, least - 1), most - 1)}`;
  return least === 0 ? `(${list})?` : list;
}
