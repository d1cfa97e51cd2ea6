/** How far two arrays are apart, in float64. Values arrive in pieces; the measures cover all of them. */

/** Where two backends first part: `token` and `channel` count from 0. */
export interface Divergence {
  readonly token: number;
  readonly channel: number;
  readonly reference: number;
  readonly candidate: number;
}

export interface Measures {
  /** Values whose bits differ. */
  readonly differing: number;
  /** Tokens with at least one such value. */
  readonly differingTokens: number;
  /** Values that are NaN or infinite on either side. */
  readonly notFinite: number;
  /** The largest |c - r|. */
  readonly maxAbs: number;
  /** Normalized mean square error: the sum of (c - r)^2 over the sum of r^2; 0 for equal values. */
  readonly nmse: number;
  /**
   * FlashMLA's cosine difference: 1 - 2 r.c / (r.r + c.c), which is the sum of (c - r)^2 over the sum of r^2 + c^2. Unlike
   * an angle it sees a wrong scale too.
   */
  readonly cosine: number;
  readonly first: Divergence | null;
  /** Where the difference is largest. */
  readonly largest: Divergence | null;
}

const none: ReadonlySet<number> = new Set();

/**
 * Compares a candidate's values with the reference's. A NaN on both sides is equal whatever its payload, which WebAssembly
 * leaves open; equal infinities are equal. Such pairs count for nothing but `notFinite`. A NaN or infinity that only one side
 * has makes all measures infinite.
 */
export class Differences {
  #differing = 0;
  #differingTokens = 0;
  #notFinite = 0;
  #maxAbs = 0;
  #squaredError = 0;
  #squaredReference = 0;
  #squaredCandidate = 0;
  #first: Divergence | null = null;
  #largest: Divergence | null = null;

  /**
   * Adds rows of `width` values, the first of them token `firstToken`; both arrays are of the same length. Tokens of `leftOut`
   * count for nothing.
   */
  add(
    reference: Float32Array,
    candidate: Float32Array,
    width: number,
    firstToken: number,
    leftOut: ReadonlySet<number> = none,
  ): void {
    const referenceBits = new Int32Array(reference.buffer, reference.byteOffset, reference.length);
    const candidateBits = new Int32Array(candidate.buffer, candidate.byteOffset, candidate.length);
    for (let row = 0; row < reference.length; row += width) {
      const token = firstToken + row / width;
      if (leftOut.has(token)) continue;
      const before = this.#differing;
      for (let i = row; i < row + width; i++) {
        const [r, c] = [reference[i]!, candidate[i]!];
        const equal = referenceBits[i] === candidateBits[i] || (Number.isNaN(r) && Number.isNaN(c));
        const most = this.#maxAbs;
        this.#addPair(r, c, equal);
        if (equal) continue;
        this.#differing++;
        if (this.#first !== null && this.#maxAbs <= most) continue;
        const place = { token, channel: i - row, reference: r, candidate: c };
        this.#first ??= place;
        this.#largest = place;
      }
      if (this.#differing > before) this.#differingTokens++;
    }
  }

  #addPair(r: number, c: number, equal: boolean): void {
    if (!Number.isFinite(r) || !Number.isFinite(c)) {
      this.#notFinite++;
      if (!equal) this.#maxAbs = this.#squaredError = Number.POSITIVE_INFINITY;
      return;
    }
    this.#squaredReference += r * r;
    this.#squaredCandidate += c * c;
    if (equal) return;
    const error = c - r;
    this.#squaredError += error * error;
    this.#maxAbs = Math.max(this.#maxAbs, Math.abs(error));
  }

  /** The measures of all that was added. */
  result(): Measures {
    // Infinity stays Infinity: an error over nothing, or an error without bounds.
    const over = (squares: number) =>
      this.#squaredError === 0 || this.#squaredError === Number.POSITIVE_INFINITY
        ? this.#squaredError
        : this.#squaredError / squares;
    return {
      differing: this.#differing,
      differingTokens: this.#differingTokens,
      notFinite: this.#notFinite,
      maxAbs: this.#maxAbs,
      nmse: over(this.#squaredReference),
      cosine: over(this.#squaredReference + this.#squaredCandidate),
      first: this.#first,
      largest: this.#largest,
    };
  }
}
