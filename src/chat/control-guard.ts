import { randomBytes } from 'node:crypto';
import type { Tokenizer } from '../tokenizer/types.ts';

/**
 * Keeps what people write from being read as control tokens. Before rendering, a private marker goes into every control
 * token's name in their text, and into every part of one at the edges of a text, where the template or the next text could
 * complete it. After rendering, whole names are the template's own; the marker is taken out of the text between them before
 * BPE sees it, so the text gets the tokens of a plain rendering.
 */
export interface ControlGuard {
  /** `text` with markers. `whole: false` leaves alone a text that equals the inside of a name ("user"): for keys, roles. */
  protect(text: string, options?: { whole?: boolean }): string;
  /** The rendered prompt without markers, as people should see it. */
  plain(rendered: string): string;
  /** The token ids of a rendered prompt. */
  encode(rendered: string): number[];
}

interface Names {
  /** Any control token's name, longest first, so that a name that begins with another is found whole. */
  readonly pattern: string;
  /** Proper beginnings and endings of names. */
  readonly beginnings: ReadonlySet<string>;
  readonly endings: ReadonlySet<string>;
  /** The names without their first and last character, one a line. */
  readonly insides: string;
  readonly longest: number;
}

const namesOf = new WeakMap<Tokenizer, Names>();

/** A guard for one rendering; its marker is random, so nobody can write it. */
export function createControlGuard(tokenizer: Tokenizer): ControlGuard {
  const names = controlNames(tokenizer);
  const marker = randomMarker();
  // A template may print JSON with non-ASCII characters escaped, the marker's among them.
  const escapedMarker = marker.replace(/./g, (c) => `\\u${c.charCodeAt(0).toString(16)}`);
  const anyName = new RegExp(names.pattern, 'g');
  const split = new RegExp(`(${names.pattern})`);
  const plain = (text: string) => text.replaceAll(marker, '').replaceAll(escapedMarker, '');
  return {
    protect(text, options = {}) {
      const marked = text.replace(anyName, (name) => name[0] + marker + name.slice(1));
      return protectEdges(marked, names, marker, options.whole ?? true);
    },
    plain,
    encode(rendered) {
      // A split by a capturing group alternates ordinary text (even places) and names (odd places).
      return rendered.split(split).flatMap((piece, place) => {
        if (place % 2 === 1) return [tokenizer.specials.get(piece)!];
        return piece === '' ? [] : tokenizer.encode(plain(piece), { specials: false });
      });
    },
  };
}

function protectEdges(text: string, names: Names, marker: string, whole: boolean): string {
  // Templates may trim, so the edges are those of the trimmed text.
  const core = text.trim();
  const start = text.length - text.trimStart().length;
  const end = start + core.length;
  const places = new Set<number>();
  if (whole && core.length > 1 && core.length < names.longest && names.insides.includes(core)) places.add(start + 1);
  for (let length = 1; length <= Math.min(core.length, names.longest); length++) {
    if (names.beginnings.has(core.slice(-length))) places.add(end - length + 1);
    if (names.endings.has(core.slice(0, length))) places.add(start + length - 1);
  }
  let out = text;
  for (const place of [...places].sort((a, b) => b - a)) out = out.slice(0, place) + marker + out.slice(place);
  return out;
}

function controlNames(tokenizer: Tokenizer): Names {
  const known = namesOf.get(tokenizer);
  if (known !== undefined) return known;
  const names = [...tokenizer.specials.keys()].filter((name) => name !== '').sort((a, b) => b.length - a.length);
  const beginnings = new Set<string>();
  const endings = new Set<string>();
  for (const name of names) {
    for (let cut = 1; cut < name.length; cut++) {
      beginnings.add(name.slice(0, cut));
      endings.add(name.slice(cut));
    }
  }
  const made: Names = {
    pattern: names.map((name) => name.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&')).join('|') || '(?!)',
    beginnings,
    endings,
    insides: names.map((name) => name.slice(1, -1)).join('\n'),
    longest: names[0]?.length ?? 0,
  };
  namesOf.set(tokenizer, made);
  return made;
}

/** Forty random bits as Unicode noncharacters: no template treats them specially, and JSON prints them raw. */
function randomMarker(): string {
  return Array.from(randomBytes(8), (byte) => String.fromCharCode(0xfdd0 + (byte & 31))).join('');
}
