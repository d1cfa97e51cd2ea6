/**
 * Kimi's split of ordinary text into pieces, each of which is encoded by itself. The rules are the alternatives of the
 * official pattern, tried in order at every place (reference: tokenization_kimi.py of the checkpoints):
 *
 *   1  [\p{Han}]+
 *   2  [^\r\n\p{L}\p{N}]? upper* lower+ contraction?      upper and lower: see character-classes.ts
 *   3  [^\r\n\p{L}\p{N}]? upper+ lower* contraction?
 *   4  \p{N}{1,3}
 *   5  ' '? [^\s\p{L}\p{N}]+ [\r\n]*
 *   6  \s* [\r\n]+
 *   7  \s+ (?!\S)
 *   8  \s+
 *
 * A scanner by hand instead of one regular expression: it looks at every character a bounded number of times, where the
 * expression backtracks over runs of tens of thousands.
 */
import { CharacterClass, classAt, isSymbol, widthAt } from './character-classes.ts';

const { upper, lower, letter, number, space, han, newline } = CharacterClass;

/** Where the piece that starts at `start` ends. `text` is well formed, `start` is inside it. */
export function pieceEnd(text: string, start: number): number {
  const bits = classAt(text, start);
  if (bits & han) return runEnd(text, start, han);
  const word = wordEnd(text, start, bits);
  if (word > start) return word;
  if (bits & number) return runEnd(text, start, number, 3);
  const symbols = text[start] === ' ' ? start + 1 : start;
  if (isSymbol(classAt(text, symbols))) return runEnd(text, symbolsEnd(text, symbols), newline);
  return spaceEnd(text, start);
}

/** The end of the run of characters that have `bit`, at most `most` of them. */
function runEnd(text: string, start: number, bit: number, most = Number.POSITIVE_INFINITY): number {
  let at = start;
  for (let count = 0; count < most && classAt(text, at) & bit; count++) at += widthAt(text, at);
  return at;
}

function symbolsEnd(text: string, start: number): number {
  let at = start;
  while (isSymbol(classAt(text, at))) at += widthAt(text, at);
  return at;
}

/**
 * Alternatives 2 and 3, each with its optional prefix first and then without; -1 if neither holds. A prefix is any
 * character but CR, LF, letters and numbers, so that the way without it matters for marks only: they can be both.
 */
function wordEnd(text: string, start: number, bits: number): number {
  const body = bits & (letter | number | newline) ? start : start + widthAt(text, start);
  let end = lowerWordEnd(text, body);
  if (end < 0 && body !== start && bits & lower) end = lowerWordEnd(text, start);
  if (end < 0) {
    end = runEnd(text, body, upper); // lower* is empty here, or alternative 2 would have matched
    if (end === body) return -1;
  }
  return contractionEnd(text, end);
}

/** upper* lower+ from `start`, or -1. Where no lower character follows the upper ones, upper* gives back what it must. */
function lowerWordEnd(text: string, start: number): number {
  let at = start;
  let givenBack = -1;
  let bits = classAt(text, at);
  while (bits & upper) {
    at += widthAt(text, at);
    if (bits & lower) givenBack = at;
    bits = classAt(text, at);
  }
  return bits & lower ? runEnd(text, at, lower) : givenBack;
}

/** (?i:'s|'t|'re|'ve|'m|'ll|'d)? — ignoring case includes the long s, U+017F, which folds to s. */
const contraction = /'(?:[sStTmMdD\u017f]|[rR][eE]|[vV][eE]|[lL]{2})/y;

function contractionEnd(text: string, at: number): number {
  if (text[at] !== "'") return at;
  contraction.lastIndex = at;
  return contraction.test(text) ? contraction.lastIndex : at;
}

/** Alternatives 6 to 8, at white space. */
function spaceEnd(text: string, start: number): number {
  let at = start;
  let afterNewline = -1;
  for (let bits = classAt(text, at); bits & space; bits = classAt(text, at)) {
    at++; // all white space is in the basic plane
    if (bits & newline) afterNewline = at;
  }
  if (afterNewline > 0) return afterNewline;
  return at === text.length || at === start + 1 ? at : at - 1;
}
