/**
 * Numbers between bounds as EBNF. Digits are compared from the left: a prefix that equals the bound's is "tight" and limits the
 * next digit, any other is free. Numbers have at most 18 digits on either side of the point, so that reading them as doubles
 * never overflows.
 */
import type { Refuse, Schema } from './keywords.ts';
import type { Rules } from './rules.ts';

const mostDigits = 18;
/** Any integer, any number. An exponent of two digits keeps it finite. */
export const anyInteger = '"-"? ("0" | [1-9] [0-9]{0,17})';
export const anyNumber = `${anyInteger} ("." [0-9]{1,18})? ([eE] [-+]? [0-9]{1,2})?`;

/** A decimal that is not negative: digits before the point, without leading zeros, and after it. */
interface Magnitude {
  readonly whole: string;
  readonly fraction: string;
}

/** Between which values a number (or integer) of `schema` may lie, both inclusive. */
export function bounds(schema: Schema, integer: boolean, refuse: Refuse): { least: number; most: number } {
  const given = (keyword: 'minimum' | 'maximum' | 'exclusiveMinimum' | 'exclusiveMaximum') => {
    const value = schema[keyword];
    if (value === undefined || Math.abs(value) <= Number.MAX_SAFE_INTEGER) return value;
    // Neighbouring integers are one double there, and bounds mean little.
    refuse(keyword, `it is beyond ${Number.MAX_SAFE_INTEGER}`);
    return undefined;
  };
  // The nearest number beyond an excluded one that is surely another double: a subset of what the schema allows.
  const step = (bound: number) => (integer ? (Number.isInteger(bound) ? 1 : 0) : Math.abs(bound) < 1e6 ? 1e-6 : 1);
  const [below, above] = [given('exclusiveMaximum'), given('exclusiveMinimum')];
  return {
    least: Math.max(given('minimum') ?? -Infinity, above === undefined ? -Infinity : above + step(above)),
    most: Math.min(given('maximum') ?? Infinity, below === undefined ? Infinity : below - step(below)),
  };
}

/** The numbers (or integers) x with least <= x <= most, either of which may be infinite; null if there are none. */
export function numbersBetween(rules: Rules, least: number, most: number, integer: boolean): string | null {
  if (least > most) return null;
  const parts: string[] = [];
  if (most >= 0) parts.push(...magnitudes(rules, Math.max(0, least), most, integer));
  if (least < 0) {
    parts.push(...magnitudes(rules, Math.max(0, -most), -least, integer).map((part) => `"-" (${part})`));
  }
  return parts.length === 0 ? null : parts.map((part) => `(${part})`).join(' | ');
}

function magnitudes(rules: Rules, least: number, most: number, integer: boolean): string[] {
  const low = magnitude(integer ? Math.ceil(least) : least);
  const high = magnitude(Number.isFinite(most) ? (integer ? Math.floor(most) : most) : null);
  if (integer) return wholes(rules, low.whole, high.whole);
  const parts: string[] = [];
  const sameWhole = low.whole === high.whole;
  if (sameWhole) {
    parts.push(...withFraction(rules, low.whole, low.fraction, high.fraction));
  } else {
    parts.push(...withFraction(rules, low.whole, low.fraction, null));
    parts.push(...wholes(rules, next(low.whole), previous(high.whole)).map((part) => `(${part}) ("." [0-9]{1,6})?`));
    parts.push(...withFraction(rules, high.whole, '', high.fraction));
  }
  return parts;
}

/** null stands for the largest number there is. */
function magnitude(value: number | null): Magnitude {
  if (value === null) return { whole: '9'.repeat(mostDigits), fraction: '9' };
  const [whole = '0', fraction = ''] = value.toFixed(12).split('.');
  return { whole, fraction: fraction.replace(/0+$/, '') };
}

/** Integers from `low` to `high`, of as many digits as either and all between. */
function wholes(rules: Rules, low: string, high: string): string[] {
  if (BigInt(low) > BigInt(high)) return [];
  const parts: string[] = [];
  for (let length = low.length; length <= high.length; length++) {
    const from = length === low.length ? low : `1${'0'.repeat(length - 1)}`;
    const to = length === high.length ? high : '9'.repeat(length);
    parts.push(digits(rules, from, to, false));
  }
  return parts;
}

/** `whole` with a fraction between `low` and `high` (null: no bound). */
function withFraction(rules: Rules, whole: string, low: string, high: string | null): string[] {
  const parts = low === '' ? [`"${whole}"`] : [];
  if (high === '') return [...parts, `"${whole}" "." "0"`];
  return [...parts, `"${whole}" "." ${digits(rules, low, high ?? '', true)}`];
}

/**
 * Digit strings between two of the same length; in a `fraction` they may end early and go on beyond, up to 6 more digits, and an
 * empty `high` is no bound.
 */
function digits(rules: Rules, low: string, high: string, fraction: boolean): string {
  const bounded = high !== '';
  const length = Math.max(low.length, high.length);
  const [first, last] = fraction ? [low.padEnd(length, '0'), high.padEnd(length, '0')] : [low, high];
  const free = (at: number) =>
    fraction ? `[0-9]{0,${length - at + 6}}` : at < length ? `[0-9]{${length - at}}` : '""';
  const known = new Map<string, string>();
  const from = (at: number, lowTight: boolean, highTight: boolean): string => {
    if (!lowTight && !highTight) return free(at);
    if (at === length) return lowTight && !highTight && fraction ? free(at) : '""';
    const key = `${at}${lowTight}${highTight}`;
    const found = known.get(key);
    if (found !== undefined) return found;
    const least = lowTight ? Number(first[at]) : 0;
    const most = highTight ? Number(last[at]) : 9;
    const choices: string[] = [];
    if (fraction && at > 0 && (!lowTight || /^0*$/.test(first.slice(at)))) choices.push('""');
    for (let digit = least; digit <= most; digit++) {
      const tight = [lowTight && digit === least, highTight && digit === most] as const;
      choices.push(`"${digit}" ${from(at + 1, ...tight)}`);
    }
    const rule = choices.length === 0 ? '""' : rules.add('digits', choices.join(' | '));
    known.set(key, rule);
    return rule;
  };
  if (length === 0) return '[0-9]{1,18}';
  return from(0, true, bounded);
}

function next(whole: string): string {
  return String(BigInt(whole) + 1n);
}

function previous(whole: string): string {
  const value = BigInt(whole) - 1n;
  return value < 0n ? '0' : String(value);
}
