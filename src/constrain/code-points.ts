/** Sets of code points, and how a JSON string may spell them. */
import { codeEscape } from './rules.ts';

/** Ascending ranges that do not touch, both ends included. */
export type CodePoints = readonly (readonly [first: number, last: number])[];

const last = 0x10ffff;
const digits: CodePoints = [[0x30, 0x39]];
const words: CodePoints = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
/** White space as ECMAScript has it. */
const spaces: CodePoints = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
/** What `.` does not match. */
const lineEnds: CodePoints = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
];

export const anyCodePoint: CodePoints = [[0, last]];
export const notLineEnd = complement(lineEnds);

/** \d and the like. */
export const classEscapes: Readonly<Record<string, CodePoints>> = {
  d: digits,
  D: complement(digits),
  w: words,
  W: complement(words),
  s: spaces,
  S: complement(spaces),
};

export function union(sets: readonly CodePoints[]): CodePoints {
  const out: [number, number][] = [];
  for (const [from, to] of sets.flat().sort((a, b) => a[0] - b[0])) {
    const before = out.at(-1);
    if (before !== undefined && from <= before[1] + 1) before[1] = Math.max(before[1], to);
    else out.push([from, to]);
  }
  return out;
}

export function complement(set: CodePoints): CodePoints {
  const out: [number, number][] = [];
  let next = 0;
  for (const [from, to] of set) {
    if (from > next) out.push([next, from - 1]);
    next = to + 1;
  }
  if (next <= last) out.push([next, last]);
  return out;
}

export function intersection(a: CodePoints, b: CodePoints): CodePoints {
  return complement(union([complement(a), complement(b)]));
}

/** ASCII that is written as it is: no controls, quotes and backslashes. */
const rawAscii: CodePoints = [
  [0x20, 0x21],
  [0x23, 0x5b],
  [0x5d, 0x7f],
];
const ascii: CodePoints = [[0, 0x7f]];
/** UTF-8 has no halves of pairs, and the two separators that `.` leaves out are not worth losing all other scripts. */
const negligible: CodePoints = [
  [0x2028, 0x2029],
  [0xd800, 0xdfff],
];
/** Beyond ASCII the library knows classes only as "all the others", so that a few are spelled out. */
const mostSpelled = 64;
const shortEscapes: readonly (readonly [code: number, letter: string])[] = [
  [0x22, '"'],
  [0x5c, '\\'],
  [0x08, 'b'],
  [0x0c, 'f'],
  [0x0a, 'n'],
  [0x0d, 'r'],
  [0x09, 't'],
];

/** One of the code points inside a JSON string, as EBNF: all of them, or at least no others. Null if none can be said. */
export function inJsonString(set: CodePoints): string | null {
  const parts: string[] = [];
  const plain = intersection(set, rawAscii);
  const beyond = intersection(set, complement(union([ascii, negligible])));
  const missing = complement(union([set, negligible]));
  if (missing.every(([from]) => from <= 0x7f)) {
    parts.push(`[^${ranges(intersection(complement(plain), ascii))}]`);
  } else {
    if (plain.length > 0) parts.push(`[${ranges(plain)}]`);
    const count = beyond.reduce((sum, [from, to]) => sum + to - from + 1, 0);
    if (count <= mostSpelled) {
      for (const [from, to] of beyond) {
        for (let code = from; code <= to; code++) parts.push(`"${codeEscape(code)}"`);
      }
    }
  }
  for (const [code, letter] of shortEscapes) {
    if (!set.some(([from, to]) => from <= code && code <= to)) continue;
    parts.push(`"\\\\${/["\\]/.test(letter) ? '\\' : ''}${letter}"`);
  }
  return parts.length === 0 ? null : parts.length === 1 ? parts[0]! : `(${parts.join(' | ')})`;
}

function ranges(set: CodePoints): string {
  return set.map(([from, to]) => (from === to ? codeEscape(from) : `${codeEscape(from)}-${codeEscape(to)}`)).join('');
}

/** What a string may begin with, unescaped, that begins like none of `names`. */
export function unlike(names: readonly string[]): CodePoints {
  const firsts = names.filter((name) => name !== '').map((name) => name.codePointAt(0)!);
  const taken = [...new Set(firsts)].sort((a, b) => a - b).map((code) => [code, code] as const);
  const escaped = [[0, 0x1f] as const, [0x22, 0x22] as const, [0x5c, 0x5c] as const];
  return intersection(intersection(anyCodePoint, complement(taken)), complement(escaped));
}
