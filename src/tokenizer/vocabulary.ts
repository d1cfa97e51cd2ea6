/**
 * The bytes of every token and, for byte pairs, the way back from bytes to id. Ids double as ranks: kimi-k2 vocabularies
 * number their tokens in the order they were merged.
 *
 * Everything lies in typed arrays, about 5 MB for 163,840 tokens. The hash of a byte range is the difference of two prefix
 * hashes, so that looking up any part of a piece costs the same, however long the part.
 */
import { randomInt } from 'node:crypto';
import type { TokenPool } from './token-pool.ts';

export class Vocabulary {
  readonly size: number;
  /** Bytes of the longest byte pair. */
  readonly longest: number;
  readonly #bytes: Uint8Array;
  readonly #offsets: Uint32Array;
  /** Polynomial hash of each id's bytes, modulo 2^32. */
  readonly #hashes: Int32Array;
  /** Open addressing: id + 1, or 0 for an empty slot. */
  readonly #slots: Int32Array;
  readonly #shift: number;
  /** #powers[n]: the multiplier to the power n. The multiplier is random, so that no file can be made to collide. */
  readonly #powers: Int32Array;

  /** Reads `pool`; ids for which `isSpecial` holds have bytes but are never found by them. */
  constructor(pool: TokenPool, isSpecial: (id: number) => boolean) {
    this.size = pool.size;
    this.#bytes = new Uint8Array(pool.bytes);
    this.#offsets = Uint32Array.from(pool.offsets);
    const bits = Math.max(8, Math.ceil(Math.log2(this.size * 2)));
    this.#slots = new Int32Array(2 ** bits);
    this.#shift = 32 - bits;
    this.#hashes = new Int32Array(this.size);

    let longest = 0;
    for (let id = 0; id < this.size; id++) longest = Math.max(longest, this.length(id));
    const multiplier = randomInt(2 ** 31) * 2 + 1;
    this.#powers = new Int32Array(longest + 1).fill(1);
    for (let n = 1; n <= longest; n++) this.#powers[n] = Math.imul(this.#powers[n - 1]!, multiplier);

    const prefix = new Int32Array(longest + 1);
    this.longest = 0;
    for (let id = 0; id < this.size; id++) {
      if (isSpecial(id)) continue;
      const length = this.length(id);
      this.longest = Math.max(this.longest, length);
      this.hashPrefixes(this.#bytes, this.#offsets[id]!, length, prefix);
      this.#hashes[id] = prefix[length]!;
      const twin = this.find(this.#bytes, this.#offsets[id]!, prefix, 0, length);
      if (twin >= 0) throw pool.error(`tokens ${twin} and ${id} are the same bytes`);
      this.#insert(id);
    }
    for (let byte = 0; byte < 256; byte++) {
      if (this.findByte(byte) < 0) throw pool.error(`it has no token for the single byte ${byte}`);
    }
  }

  length(id: number): number {
    return this.#offsets[id + 1]! - this.#offsets[id]!;
  }

  /** The bytes of `id`, a view. */
  view(id: number): Uint8Array {
    return this.#bytes.subarray(this.#offsets[id], this.#offsets[id + 1]);
  }

  /** Copies the bytes of `id` to `offset` of `into`; returns how many they are. */
  copy(id: number, into: Uint8Array, offset: number): number {
    const [start, length] = [this.#offsets[id]!, this.length(id)];
    for (let n = 0; n < length; n++) into[offset + n] = this.#bytes[start + n]!;
    return length;
  }

  /** into[n] = hash of the first n of the `length` bytes from `start`, for n = 0..length. */
  hashPrefixes(bytes: Uint8Array, start: number, length: number, into: Int32Array): void {
    const multiplier = this.#powers[1]!;
    let hash = 0;
    into[0] = 0;
    for (let n = 0; n < length; n++) {
      hash = (Math.imul(hash, multiplier) + bytes[start + n]! + 1) | 0;
      into[n + 1] = hash;
    }
  }

  /** The id of bytes[start + from .. start + to), or -1; `prefixes` are the hashes from `start` on. */
  find(bytes: Uint8Array, start: number, prefixes: Int32Array, from: number, to: number): number {
    const length = to - from;
    if (length > this.longest) return -1;
    const hash = (prefixes[to]! - Math.imul(prefixes[from]!, this.#powers[length]!)) | 0;
    const mask = this.#slots.length - 1;
    for (let slot = this.#home(hash); ; slot = (slot + 1) & mask) {
      const id = this.#slots[slot]! - 1;
      if (id < 0) return -1;
      if (this.#hashes[id] === hash && this.#equals(id, bytes, start + from, length)) return id;
    }
  }

  /** The id of a single byte. */
  findByte(byte: number): number {
    const hash = byte + 1;
    return this.find(Uint8Array.of(byte), 0, Int32Array.of(0, hash), 0, 1);
  }

  #home(hash: number): number {
    // Fibonacci hashing: the multiplier is 2^32 over the golden ratio; the top bits are the well mixed ones.
    return Math.imul(hash ^ (hash >>> 15), 0x9e3779b1) >>> this.#shift;
  }

  #insert(id: number): void {
    const mask = this.#slots.length - 1;
    let slot = this.#home(this.#hashes[id]!);
    while (this.#slots[slot] !== 0) slot = (slot + 1) & mask;
    this.#slots[slot] = id + 1;
  }

  #equals(id: number, bytes: Uint8Array, start: number, length: number): boolean {
    if (this.length(id) !== length) return false;
    const offset = this.#offsets[id]!;
    for (let n = 0; n < length; n++) if (this.#bytes[offset + n] !== bytes[start + n]) return false;
    return true;
  }
}
