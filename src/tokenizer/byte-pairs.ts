/** Byte pair encoding: a piece becomes single bytes, then the adjacent pair of lowest rank is merged until none is left. */
import type { Vocabulary } from './vocabulary.ts';

/** A heap key is rank * positionRange + position: the lowest rank first, the leftmost among equals. Below 2^53. */
const positionRange = 2 ** 31;

/**
 * Encodes pieces. The candidates for merging lie in a heap, so a piece of n bytes costs n log n: text without a single
 * space cannot make it quadratic.
 */
export class BytePairEncoder {
  readonly #vocabulary: Vocabulary;
  readonly #byteIds: Int32Array;
  readonly #heap = new MinHeap();
  // Scratch of the piece at hand, indexed by the position at which a part starts.
  #prefixes = new Int32Array(256);
  #ids = new Int32Array(256);
  #next = new Int32Array(256);
  #previous = new Int32Array(256);
  /** Rank of the part at a position joined with the part after it; -1: no token, or the part is gone. */
  #ranks = new Int32Array(256);

  constructor(vocabulary: Vocabulary) {
    this.#vocabulary = vocabulary;
    this.#byteIds = Int32Array.from({ length: 256 }, (_, byte) => vocabulary.findByte(byte));
  }

  /** Appends the ids of the piece bytes[start .. start + length) to `out`. */
  encode(bytes: Uint8Array, start: number, length: number, out: number[]): void {
    if (length >= this.#prefixes.length) this.#grow(length + 1);
    this.#vocabulary.hashPrefixes(bytes, start, length, this.#prefixes);
    const whole = this.#vocabulary.find(bytes, start, this.#prefixes, 0, length);
    if (whole >= 0) {
      out.push(whole);
      return;
    }
    this.#merge(bytes, start, length);
    for (let at = 0; at < length; at = this.#next[at]!) out.push(this.#ids[at]!);
  }

  #merge(bytes: Uint8Array, start: number, length: number): void {
    const [ids, next, previous, ranks] = [this.#ids, this.#next, this.#previous, this.#ranks];
    for (let at = 0; at < length; at++) {
      ids[at] = this.#byteIds[bytes[start + at]!]!;
      next[at] = at + 1;
      previous[at] = at - 1;
    }
    for (let at = 0; at < length; at++) this.#offer(bytes, start, length, at);
    for (let key = this.#heap.pop(); key >= 0; key = this.#heap.pop()) {
      const at = key % positionRange;
      const rank = (key - at) / positionRange;
      if (ranks[at] !== rank) continue; // an older candidate: its parts have been merged meanwhile
      const gone = next[at]!;
      ids[at] = rank;
      ranks[gone] = -1;
      next[at] = next[gone]!;
      if (next[at]! < length) previous[next[at]!] = at;
      this.#offer(bytes, start, length, at);
      if (previous[at]! >= 0) this.#offer(bytes, start, length, previous[at]!);
    }
  }

  /** Makes the pair that starts at `at` a candidate if it is a token. */
  #offer(bytes: Uint8Array, start: number, length: number, at: number): void {
    const middle = this.#next[at]!;
    const rank = middle < length ? this.#vocabulary.find(bytes, start, this.#prefixes, at, this.#next[middle]!) : -1;
    this.#ranks[at] = rank;
    if (rank >= 0) this.#heap.push(rank * positionRange + at);
  }

  #grow(length: number): void {
    const size = 2 ** Math.ceil(Math.log2(length));
    this.#prefixes = new Int32Array(size);
    this.#ids = new Int32Array(size);
    this.#next = new Int32Array(size);
    this.#previous = new Int32Array(size);
    this.#ranks = new Int32Array(size);
  }
}

/** A binary heap of non-negative numbers. */
class MinHeap {
  #keys = new Float64Array(256);
  #size = 0;

  push(key: number): void {
    if (this.#size === this.#keys.length) {
      const larger = new Float64Array(this.#size * 2);
      larger.set(this.#keys);
      this.#keys = larger;
    }
    const keys = this.#keys;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (keys[parent]! <= key) break;
      keys[at] = keys[parent]!;
      at = parent;
    }
    keys[at] = key;
  }

  /** Takes the smallest key out; -1 when there is none. */
  pop(): number {
    if (this.#size === 0) return -1;
    const keys = this.#keys;
    const top = keys[0]!;
    const last = keys[--this.#size]!;
    let at = 0;
    for (let child = 1; child < this.#size; child = 2 * at + 1) {
      if (child + 1 < this.#size && keys[child + 1]! < keys[child]!) child++;
      if (keys[child]! >= last) break;
      keys[at] = keys[child]!;
      at = child;
    }
    keys[at] = last;
    return top;
  }
}
