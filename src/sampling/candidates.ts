/** The tokens that may still be drawn, in id order, with their weights: probabilities relative to the likeliest token. */
import type { SamplingOptions } from './types.ts';

export type Logits = Float32Array | Float64Array;

/** The id of the largest logit, the lowest among equals; -1 if none is above -Infinity. NaN counts as -Infinity. */
export function largest(logits: Logits): number {
  let best = Number.NEGATIVE_INFINITY;
  let bestId = -1;
  for (let id = 0; id < logits.length; id++) {
    if (logits[id]! > best) {
      best = logits[id]!;
      bestId = id;
    }
  }
  return bestId;
}

/** Weights are at most 1, whose upper 16 bits are 0x3ff0. */
const buckets = 0x3ff1;

/** Filled for one draw after another; its arrays are made for `vocabulary` tokens once. */
export class Candidates {
  readonly #ids: Int32Array;
  readonly #weights: Float64Array;
  /** The weights as halves, low and high (every machine that runs this is little endian). */
  readonly #halves: Uint32Array;
  readonly #masses = new Float64Array(buckets);
  readonly #scratch: Float64Array;
  #count = 0;
  #sum = 0;

  constructor(vocabulary: number) {
    this.#ids = new Int32Array(vocabulary);
    this.#weights = new Float64Array(vocabulary);
    this.#halves = new Uint32Array(this.#weights.buffer);
    this.#scratch = new Float64Array(vocabulary);
  }

  /** Ids that may be drawn, ascending. */
  get ids(): readonly number[] {
    return [...this.#ids.subarray(0, this.#count)];
  }

  /** Applies temperature, top-k, softmax, min-p and top-p, in this order. `max` is the largest logit. */
  fill(logits: Logits, max: number, { temperature, topK, minP, topP }: SamplingOptions): void {
    const cut = topK > 0 && topK < logits.length ? this.#topCut(logits, topK) : everything;
    let [count, sum, ties] = [0, 0, cut.ties];
    for (let id = 0; id < logits.length; id++) {
      const logit = logits[id]!;
      // Written so that NaN is left out; an infinite logit must not meet itself in the difference.
      if (!(logit >= cut.least) || (logit === cut.least && ties-- <= 0)) continue;
      const weight = logit === max ? 1 : Math.exp((logit - max) / temperature);
      if (weight === 0 || weight < minP) continue;
      this.#ids[count] = id;
      this.#weights[count++] = weight;
      sum += weight;
    }
    this.#count = count;
    this.#sum = sum;
    if (topP < 1) this.#keepNucleus(topP);
  }

  /** The candidate at `position`, in [0, 1), of the cumulative distribution. */
  at(position: number): number {
    const target = position * this.#sum;
    let reached = 0;
    for (let index = 0; index < this.#count; index++) {
      reached += this.#weights[index]!;
      if (reached > target) return this.#ids[index]!;
    }
    return this.#ids[this.#count - 1]!; // rounding kept the sum below its target
  }

  /**
   * Keeps the fewest likeliest candidates that together have at least `topP` of the mass. Instead of sorting them all, their
   * mass is summed by size, which finds the bucket in which the cut lies; only that one is sorted.
   */
  #keepNucleus(topP: number): void {
    const target = topP * this.#sum;
    const masses = this.#masses.fill(0);
    for (let index = 0; index < this.#count; index++) masses[this.#bucketOf(index)]! += this.#weights[index]!;
    let bucket = buckets - 1;
    let mass = 0;
    while (bucket > 0 && (masses[bucket] === 0 || mass + masses[bucket]! < target)) mass += masses[bucket--]!;
    if (bucket === 0) return; // rounding kept the sum below the target: all are needed
    let size = 0;
    for (let index = 0; index < this.#count; index++) {
      if (this.#bucketOf(index) === bucket) this.#scratch[size++] = this.#weights[index]!;
    }
    const sorted = this.#scratch.subarray(0, size).sort();
    let kept = 0;
    while (kept < size && (kept === 0 || mass < target)) mass += sorted[size - 1 - kept++]!;
    this.#keep(cutAt(sorted, size - kept, kept));
  }

  /** By exponent and four bits of mantissa: a larger bucket holds larger weights. */
  #bucketOf(index: number): number {
    return this.#halves[2 * index + 1]! >>> 16;
  }

  #keep(cut: Cut): void {
    let [count, sum, ties] = [0, 0, cut.ties];
    for (let index = 0; index < this.#count; index++) {
      const weight = this.#weights[index]!;
      if (weight < cut.least || (weight === cut.least && ties-- <= 0)) continue;
      this.#ids[count] = this.#ids[index]!;
      this.#weights[count++] = weight;
      sum += weight;
    }
    this.#count = count;
    this.#sum = sum;
  }

  /** What the `count` largest logits are, found with a heap of that many: one pass when few are asked for. */
  #topCut(logits: Logits, count: number): Cut {
    const heap = this.#scratch.subarray(0, count).fill(Number.NEGATIVE_INFINITY);
    for (const logit of logits) if (logit > heap[0]!) replaceLeast(heap, logit);
    return cutAt(heap, 0, count);
  }
}

/** Everything above `least` is in, and of those equal to it the first `ties`. */
interface Cut {
  readonly least: number;
  readonly ties: number;
}

const everything: Cut = { least: Number.NEGATIVE_INFINITY, ties: Number.POSITIVE_INFINITY };

/** The cut that keeps the `count` values from `start` on, of which the first is the least. */
function cutAt(values: Float64Array, start: number, count: number): Cut {
  const least = values[start]!;
  let above = 0;
  for (let index = start; index < start + count; index++) if (values[index]! > least) above++;
  return { least, ties: count - above };
}

/** Puts `value` in the place of the least one, heap[0]. */
function replaceLeast(heap: Float64Array, value: number): void {
  let at = 0;
  for (let child = 1; child < heap.length; child = 2 * at + 1) {
    if (child + 1 < heap.length && heap[child + 1]! < heap[child]!) child++;
    if (heap[child]! >= value) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = value;
}
