/**
 * What grammars leave out of JSON texts: lengths of strings, and that bytes are UTF-8. Follows the text, knows which parts of
 * the schema speak of the value under way, and takes tokens out of masks.
 *
 * Where several branches of the schema may hold, a string keeps to the lengths of all of them. If it need not be strict, lengths
 * are left alone where the grammar has chosen a pattern or values, or where no string would be left.
 */

import { formats } from './formats.ts';
import type { Schema } from './keywords.ts';
import { allows, forbid, type TokenTable } from './masks.ts';
import { type TokenShapes, tokenShapes } from './token-shapes.ts';
import { nextUtf8, utf8Start } from './utf8.ts';

interface Limits {
  readonly least: number;
  readonly most: number;
}

/** An object or array that is open. */
interface Frame {
  readonly object: boolean;
  readonly schemas: readonly Schema[];
  /** The key under way, or the index. */
  readonly place: string | number;
  /** In an object: a string would be a key. */
  readonly keyNext: boolean;
}

/** Where a text stands; never changed, so that trying a token costs no copy. */
interface Place {
  readonly frames: readonly Frame[];
  readonly string: 'none' | 'key' | 'value';
  readonly limits: Limits | null;
  /** Code points of the string so far. */
  readonly count: number;
  /** Bytes of the key so far. */
  readonly key: readonly number[];
  /** Behind a backslash: how many more bytes the escape takes at most; 0: none. */
  readonly escape: number;
}

const quote = 0x22;
const backslash = 0x5c;
const start: Place = { frames: [], string: 'none', limits: null, count: 0, key: [], escape: 0 };

export class StringLimits {
  readonly #root: unknown;
  readonly #tokens: TokenTable;
  readonly #shapes: TokenShapes;
  /** False: no string has a limit, and the text is not followed. */
  readonly #any: boolean;
  readonly #strict: boolean;
  #place: Place | null = start;
  #utf8 = utf8Start;

  constructor(schema: unknown, strict: boolean, tokens: TokenTable) {
    this.#root = schema;
    this.#strict = strict;
    this.#tokens = tokens;
    this.#shapes = tokenShapes(tokens);
    this.#any = /"(min|max)Length":/.test(JSON.stringify(schema));
  }

  accept(token: number): void {
    const bytes = this.#tokens.tokenizer.bytes(token);
    for (const byte of bytes) this.#utf8 = nextUtf8(this.#utf8, byte) ?? utf8Start;
    if (this.#any && this.#place !== null) this.#place = this.#after(this.#place, bytes);
  }

  /** `mask` without the tokens that break a limit. */
  applied(mask: Int32Array): Int32Array {
    const { utf8, chars, quotes, backslashes, lengths } = this.#shapes;
    if (this.#utf8 === utf8Start) for (let word = 0; word < mask.length; word++) mask[word]! &= utf8[word]!;
    else this.#each(mask, (id) => this.#continues(id));
    const place = this.#place;
    if (!this.#any || place === null) return mask;
    const limits = place.string === 'value' ? place.limits : null;
    this.#each(mask, (id) => {
      if (quotes[id] === 2) return this.#after(place, this.#tokens.tokenizer.bytes(id)) !== null;
      if (limits === null) return true;
      if (place.escape > 0) return lengths[id] === 1;
      if (backslashes[id] === 1) return lengths[id] === 1 && place.count < limits.most;
      const count = place.count + chars[id]!;
      return count <= limits.most && (quotes[id] === 0 || count >= limits.least);
    });
    return mask;
  }

  #each(mask: Int32Array, keep: (id: number) => boolean): void {
    const { stopTokens, vocabulary } = this.#tokens;
    for (let id = 0; id < vocabulary; id++) {
      if (mask[id >> 5] === 0) id |= 31;
      else if (allows(mask, id) && !stopTokens.includes(id) && !keep(id)) forbid(mask, id);
    }
  }

  #continues(id: number): boolean {
    let state: number | null = this.#utf8;
    for (const byte of this.#tokens.tokenizer.bytes(id)) {
      state = nextUtf8(state, byte);
      if (state === null) return false;
    }
    return true;
  }

  /** The place behind `bytes`, or null if a limit is broken on the way. */
  #after(place: Place, bytes: Uint8Array): Place | null {
    let at: Place | null = place;
    for (const byte of bytes) {
      at = at.string === 'none' ? this.#between(at, byte) : this.#inString(at, byte);
      if (at === null) return null;
    }
    return at;
  }

  #inString(place: Place, byte: number): Place | null {
    const { string, limits } = place;
    const key = string === 'key' ? [...place.key, byte] : place.key;
    if (place.escape > 0) {
      const left = place.escape === 5 && byte !== 0x75 ? 0 : place.escape - 1;
      return counted({ ...place, key, escape: left }, left === 0);
    }
    if (byte === backslash) return { ...place, key, escape: 5 };
    if (byte !== quote) return counted({ ...place, key }, (byte & 0xc0) !== 0x80);
    if (string === 'value') {
      return limits !== null && place.count < limits.least ? null : { ...place, string: 'none', limits: null };
    }
    const name = JSON.parse(`"${Buffer.from(place.key).toString()}"`) as string;
    return withTop({ ...place, string: 'none' }, (top) => ({ ...top, place: name, keyNext: false }));
  }

  #between(place: Place, byte: number): Place {
    const top = place.frames.at(-1);
    switch (byte) {
      case quote:
        if (top?.keyNext) return { ...place, string: 'key', key: [], count: 0 };
        return { ...place, string: 'value', limits: this.#limits(this.#schemasHere(top)), count: 0 };
      case 0x7b:
      case 0x5b: {
        const object = byte === 0x7b;
        const frame = { object, schemas: this.#schemasHere(top), place: object ? '' : 0, keyNext: object };
        return { ...place, frames: [...place.frames, frame] };
      }
      case 0x7d:
      case 0x5d:
        return { ...place, frames: place.frames.slice(0, -1) };
      case 0x2c:
        return withTop(place, (frame) =>
          frame.object ? { ...frame, keyNext: true } : { ...frame, place: (frame.place as number) + 1 },
        );
      default:
        return place;
    }
  }

  #limits(schemas: readonly Schema[]): Limits | null {
    const limits = limitsOf(schemas);
    if (limits === null || this.#strict) return limits;
    return limits.least > limits.most || schemas.some(hasOwnStrings) ? null : limits;
  }

  /** The schemas that may speak of the value that begins in `frame`. */
  #schemasHere(frame: Frame | undefined): readonly Schema[] {
    const found = new Set<Schema>();
    if (frame === undefined) this.#collect(this.#root, found);
    for (const schema of frame?.schemas ?? []) {
      const { properties = {}, additionalProperties, patternProperties = {}, prefixItems = [], items } = schema;
      const { place } = frame!;
      if (typeof place === 'number') this.#collect((Array.isArray(items) ? items : prefixItems)[place] ?? items, found);
      else if (Object.hasOwn(properties, place)) this.#collect(properties[place], found);
      else for (const part of [additionalProperties, ...Object.values(patternProperties)]) this.#collect(part, found);
    }
    return [...found];
  }

  #collect(given: unknown, found: Set<Schema>): void {
    if (typeof given !== 'object' || given === null || found.has(given as Schema)) return;
    const schema = given as Schema;
    found.add(schema);
    if (schema.$ref !== undefined) this.#collect(pointed(this.#root, schema.$ref), found);
    for (const part of [...(schema.allOf ?? []), ...(schema.anyOf ?? []), ...(schema.oneOf ?? [])])
      this.#collect(part, found);
  }
}

function counted(place: Place, one: boolean): Place | null {
  const count = place.count + (one ? 1 : 0);
  return place.limits !== null && count > place.limits.most ? null : { ...place, count };
}

function withTop(place: Place, change: (top: Frame) => Frame): Place {
  const top = place.frames.at(-1);
  return top === undefined ? place : { ...place, frames: [...place.frames.slice(0, -1), change(top)] };
}

function limitsOf(schemas: readonly Schema[]): Limits | null {
  const limited = schemas.filter(({ minLength, maxLength }) => minLength !== undefined || maxLength !== undefined);
  if (limited.length === 0) return null;
  const least = Math.max(...limited.map(({ minLength = 0 }) => minLength));
  return { least, most: Math.min(...limited.map(({ maxLength = Infinity }) => maxLength)) };
}

/** Whether the grammar spells out the strings of a schema. */
function hasOwnStrings({ pattern, format, enum: values, const: only }: Schema): boolean {
  return (
    pattern !== undefined || values !== undefined || only !== undefined || (format !== undefined && formats.has(format))
  );
}

/** What a reference within `root` points to; undefined: nothing. */
export function pointed(root: unknown, reference: string): unknown {
  let at: unknown = root;
  const pointer = decoded(reference.slice(1));
  // What does not begin with a slash is the name of an anchor; these are not followed.
  if (pointer === undefined || !/^(\/|$)/.test(pointer)) return undefined;
  for (const part of pointer.split('/').slice(1)) {
    const key = part.replaceAll('~1', '/').replaceAll('~0', '~');
    if (typeof at !== 'object' || at === null || !Object.hasOwn(at, key)) return undefined;
    at = (at as Record<string, unknown>)[key];
  }
  return at;
}

function decoded(fragment: string): string | undefined {
  try {
    return decodeURIComponent(fragment);
  } catch {
    return undefined;
  }
}
