/**
 * Regular expressions as EBNF of the JSON strings they match: ECMAScript's with the u flag, as far as a grammar can say them.
 * Look-around, back references and anchors inside are refused.
 */
import { perigeeError } from '../errors.ts';
import {
  anyCodePoint,
  type CodePoints,
  classEscapes,
  complement,
  inJsonString,
  notLineEnd,
  union,
} from './code-points.ts';
import type { Rules } from './rules.ts';

const mostCharacters = 1000;
const mostRepeats = 256;
const mostDepth = 32;

/** EBNF of the inside of the string, without its quotes. Throws SCHEMA_INVALID and SCHEMA_UNSUPPORTED for `where`. */
export function patternGrammar(rules: Rules, pattern: string, where: string): string {
  return new PatternReader(rules, pattern, where).whole();
}

/** With the flag u or without, where more escapes are allowed, as in "\\-". */
export function isRegularExpression(pattern: string): boolean {
  return ['', 'u'].some((flags) => {
    try {
      return new RegExp(pattern, flags) !== null;
    } catch {
      return false;
    }
  });
}

class PatternReader {
  readonly #rules: Rules;
  readonly #text: string[];
  readonly #where: string;
  #at = 0;
  #depth = 0;

  constructor(rules: Rules, pattern: string, where: string) {
    this.#rules = rules;
    this.#where = where;
    if (pattern.length > mostCharacters) this.#unsupported(`it has more than ${mostCharacters} characters`);
    try {
      new RegExp(pattern, 'u');
    } catch (cause) {
      const what = cause instanceof Error ? cause.message : String(cause);
      if (isRegularExpression(pattern)) this.#unsupported(`it is not one with the flag u (${what})`);
      throw perigeeError('SCHEMA_INVALID', { where, why: `'pattern' is no regular expression (${what})` }, { cause });
    }
    this.#text = Array.from(pattern);
  }

  /** Each alternative is anchored for itself; what is not may have any text around it. */
  whole(): string {
    const branches: string[] = [];
    do {
      const start = this.#take('^') ? '' : `${this.#anything()} `;
      const body = this.#sequence();
      const end = this.#take('$') ? '' : ` ${this.#anything()}`;
      if (this.#at < this.#text.length && this.#peek() !== '|') this.#unsupported('it has an anchor inside');
      branches.push(start + body + end);
    } while (this.#take('|'));
    return this.#rules.add('pattern', branches.join(' | '));
  }

  #anything(): string {
    return this.#rules.add('text', `${inJsonString(anyCodePoint)}*`);
  }

  #alternatives(): string {
    if (++this.#depth > mostDepth) this.#unsupported(`it nests deeper than ${mostDepth} groups`);
    const branches = [this.#sequence()];
    while (this.#take('|')) branches.push(this.#sequence());
    this.#depth--;
    return this.#rules.add('group', branches.join(' | '));
  }

  #sequence(): string {
    const parts: string[] = [];
    while (this.#at < this.#text.length && !'|)$'.includes(this.#peek())) parts.push(this.#repeated());
    return parts.length === 0 ? '""' : parts.join(' ');
  }

  #repeated(): string {
    const atom = this.#atom();
    const mark = this.#peek();
    let out = atom;
    if ('*+?'.includes(mark) && mark !== '') {
      this.#at++;
      out = `${atom}${mark}`;
    } else if (mark === '{') {
      const close = this.#text.indexOf('}', this.#at);
      const counts = this.#text.slice(this.#at + 1, close).join('');
      const largest = Math.max(...counts.split(',').map(Number));
      if (largest > mostRepeats)
        this.#unsupported(`it repeats something ${largest} times, ${mostRepeats} are possible`);
      out = `${atom}{${counts}}`;
      this.#at = close + 1;
    }
    // Lazy quantifiers match the same strings.
    if (out !== atom) this.#take('?');
    return out;
  }

  #atom(): string {
    const character = this.#next();
    if (character === '(') return this.#group();
    if (character === '[') return this.#one(this.#class());
    if (character === '.') return this.#one(notLineEnd);
    if (character === '\\') return this.#one(this.#escape());
    if (character === '^') this.#unsupported('it has an anchor inside');
    return this.#one(single(character));
  }

  #group(): string {
    if (this.#take('?')) {
      if (this.#peek() === '<' && !'=!'.includes(this.#text[this.#at + 1] ?? '')) {
        this.#at = this.#text.indexOf('>', this.#at) + 1;
      } else if (!this.#take(':')) {
        this.#unsupported('it looks around');
      }
    }
    const body = this.#alternatives();
    if (!this.#take(')')) this.#unsupported('it has an anchor inside');
    return body;
  }

  #class(): CodePoints {
    const negative = this.#take('^');
    const sets: CodePoints[] = [];
    while (!this.#take(']')) {
      const from = this.#classMember();
      if (this.#peek() === '-' && this.#text[this.#at + 1] !== ']') {
        this.#at++;
        const to = this.#classMember();
        sets.push([[from[0]![0], to[0]![0]]]);
      } else {
        sets.push(from);
      }
    }
    const set = union(sets);
    return negative ? complement(set) : set;
  }

  #classMember(): CodePoints {
    const character = this.#next();
    if (character !== '\\') return single(character);
    if (this.#take('b')) return [[8, 8]];
    return this.#escape();
  }

  #escape(): CodePoints {
    const letter = this.#next();
    const known = classEscapes[letter];
    if (known !== undefined) return known;
    const controls: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, v: 11, f: 12, '0': 0 };
    const control = controls[letter];
    if (control !== undefined) return [[control, control]];
    if (letter === 'x') return this.#hex(2);
    if (letter === 'u') {
      if (!this.#take('{')) return this.#hex(4);
      const set = this.#hex(this.#text.indexOf('}', this.#at) - this.#at);
      this.#at++;
      return set;
    }
    if (/[\^$\\.*+?()[\]{}|/-]/.test(letter)) return single(letter);
    return this.#unsupported(`it has '\\${letter}'`);
  }

  #hex(length: number): CodePoints {
    const code = Number.parseInt(this.#text.slice(this.#at, this.#at + length).join(''), 16);
    this.#at += length;
    return [[code, code]];
  }

  #one(set: CodePoints): string {
    return inJsonString(set) ?? this.#unsupported('it matches characters that cannot be written');
  }

  #peek(): string {
    return this.#text[this.#at] ?? '';
  }

  #next(): string {
    return this.#text[this.#at++] ?? '';
  }

  #take(character: string): boolean {
    if (this.#peek() !== character) return false;
    this.#at++;
    return true;
  }

  #unsupported(why: string): never {
    throw perigeeError('SCHEMA_UNSUPPORTED', { where: this.#where, keyword: 'pattern', why });
  }
}

function single(character: string): CodePoints {
  const code = character.codePointAt(0)!;
  return [[code, code]];
}
