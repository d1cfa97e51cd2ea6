/** What Kimi's split pattern asks about a character, as bits. Several may hold at once: an ideograph is a Han letter. */
export const CharacterClass = {
  /** Lu Lt Lm Lo M without Han: what a word may start with. */
  upper: 1,
  /** Ll Lm Lo M without Han: what a word may end with. Marks and caseless letters are both. */
  lower: 2,
  letter: 4,
  number: 8,
  /** Unicode White_Space: U+0085 is, U+FEFF is not (JavaScript's \s has it the other way round). */
  space: 16,
  /** Script=Han: also 々, the number 〇 and the radicals. */
  han: 32,
  /** CR and LF. */
  newline: 64,
} as const;

/** Set for every character that was looked at, so that 0 means both 'not yet' and 'past the end of the text'. */
const known = 128;

const tests: readonly (readonly [number, RegExp])[] = [
  [CharacterClass.upper, /[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]/u],
  [CharacterClass.lower, /[\p{Ll}\p{Lm}\p{Lo}\p{M}]/u],
  [CharacterClass.letter, /\p{L}/u],
  [CharacterClass.number, /\p{N}/u],
  [CharacterClass.space, /\p{White_Space}/u],
  [CharacterClass.han, /\p{Script=Han}/u],
  [CharacterClass.newline, /[\r\n]/],
];

/** Filled as characters are met: classifying all of Unicode would cost more than most prompts do. */
const classes = new Uint8Array(0x110000);

/** The class bits of the character at `at`; 0 past the end. */
export function classAt(text: string, at: number): number {
  const point = text.codePointAt(at);
  if (point === undefined) return 0;
  return classes[point] || classify(point);
}

/** True for what the pattern calls [^\s\p{L}\p{N}]: neither space, letter nor number, and not the end. */
export function isSymbol(bits: number): boolean {
  return (bits & (known | CharacterClass.space | CharacterClass.letter | CharacterClass.number)) === known;
}

/** UTF-16 units of the character at `at` in well-formed text. */
export function widthAt(text: string, at: number): number {
  return (text.charCodeAt(at) & 0xfc00) === 0xd800 ? 2 : 1;
}

function classify(point: number): number {
  const character = String.fromCodePoint(point);
  let bits = known;
  for (const [bit, test] of tests) if (test.test(character)) bits |= bit;
  if (bits & CharacterClass.han) bits &= ~(CharacterClass.upper | CharacterClass.lower);
  classes[point] = bits;
  return bits;
}
