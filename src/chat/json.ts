/**
 * JSON as the model saw it in training, that is as Python prints it: object keys sorted by code point, numbers with their
 * Python text (1.0 stays 1.0), non-ASCII characters raw. A tree keeps what plain JavaScript objects lose: the order of keys
 * that look like integers, and numbers whose text matters.
 */

/** A number together with the text Python prints for it; made by `parseExact`, behaves as the number everywhere else. */
export class ExactNumber extends Number {
  readonly text: string;

  constructor(value: number, text: string) {
    super(value);
    this.text = text;
  }

  toJSON(): unknown {
    return rawJson(this.text);
  }
}

export type JsonTree = null | boolean | number | string | ExactNumber | JsonTree[] | Map<string, JsonTree>;

// TypeScript's library does not know these two parts of ES2026 yet; Node has both since 21. Node 20 gives no source, so that
// there 1.0 becomes 1.
const rawJson = (JSON as unknown as { rawJSON(text: string): unknown }).rawJSON;
const parseWithSource = JSON.parse as (
  text: string,
  revive: (key: string, value: unknown, context?: { source?: string }) => unknown,
) => unknown;

/** JSON.parse that keeps, as ExactNumber, each number Python would print otherwise than JavaScript. */
export function parseExact(text: string): unknown {
  return parseWithSource(text, (_key, value, context) => {
    if (typeof value !== 'number' || context?.source === undefined) return value;
    const python = pythonNumber(value, context.source);
    return python === String(value) ? value : new ExactNumber(value, python);
  });
}

/** What Python's json prints for a number it read as `source`: integers in full, floats by their repr. */
export function pythonNumber(value: number, source: string): string {
  if (!/[.eE]/.test(source)) return source === '-0' ? '0' : source;
  if (!Number.isFinite(value)) return String(value);
  if (Object.is(value, -0)) return '-0.0';
  const [mantissa = '0', exponentText = '0'] = value.toExponential().split('e');
  const exponent = Number(exponentText);
  // Python switches to exponents below 1e-4 and from 1e16 on, and writes at least two exponent digits.
  if (value !== 0 && (exponent < -4 || exponent >= 16)) {
    return `${mantissa}e${exponent < 0 ? '-' : '+'}${String(Math.abs(exponent)).padStart(2, '0')}`;
  }
  const plain = String(value);
  return plain.includes('.') ? plain : `${plain}.0`;
}

/** The tree of a JSON value; with `sort`, the keys of every object in code point order (as Python sorts strings). */
export function toTree(value: unknown, sort = false): JsonTree {
  if (Array.isArray(value)) return value.map((item) => toTree(item, sort));
  if (value instanceof ExactNumber) return value;
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    if (sort) entries.sort(([a], [b]) => compareCodePoints(a, b));
    return new Map(entries.map(([key, item]) => [key, toTree(item, sort)]));
  }
  if (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean') return value;
  return null;
}

/** The same tree with every string and key passed through `change`. */
export function mapStrings(tree: JsonTree, change: (text: string, isKey: boolean) => string): JsonTree {
  if (typeof tree === 'string') return change(tree, false);
  if (Array.isArray(tree)) return tree.map((item) => mapStrings(item, change));
  if (tree instanceof Map) {
    return new Map([...tree].map(([key, item]) => [change(key, true), mapStrings(item, change)]));
  }
  return tree;
}

/** JSON text without spaces: Python's dumps with separators (',', ':') and ensure_ascii off. */
export function compactJson(tree: JsonTree): string {
  return printJson(tree, ',', ':');
}

/** JSON text as Python's dumps prints it by default, except that non-ASCII characters stay raw. */
export function spacedJson(tree: JsonTree): string {
  return printJson(tree, ', ', ': ');
}

function printJson(tree: JsonTree, comma: string, colon: string): string {
  if (Array.isArray(tree)) return `[${tree.map((item) => printJson(item, comma, colon)).join(comma)}]`;
  if (tree instanceof Map) {
    const members = [...tree].map(([key, item]) => JSON.stringify(key) + colon + printJson(item, comma, colon));
    return `{${members.join(comma)}}`;
  }
  return tree instanceof ExactNumber ? tree.text : JSON.stringify(tree);
}

/** UTF-16 order puts astral characters before U+E000..U+FFFF; Python compares code points. */
function compareCodePoints(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    const x = a.charCodeAt(i);
    const y = b.charCodeAt(i);
    if (x === y) continue;
    const surrogateX = x >= 0xd800 && x < 0xe000;
    const surrogateY = y >= 0xd800 && y < 0xe000;
    if (surrogateX !== surrogateY) return surrogateX ? 1 : -1;
    return x - y;
  }
  return a.length - b.length;
}
