/** 2^64 over the golden ratio, the step of SplitMix64 (Steele, Lea and Flood 2014). */
const step = 0x9e3779b97f4a7c15n;

/** SplitMix64: the state is a counter and the output its hash, so any 64-bit seed is as good as any other. */
export class SplitMix64 {
  #state: bigint;

  /** `seed` counts modulo 2^64; its fraction is dropped. */
  constructor(seed: number) {
    this.#state = BigInt.asUintN(64, BigInt(Math.trunc(seed)));
  }

  /** The next 64 bits. */
  next(): bigint {
    this.#state = BigInt.asUintN(64, this.#state + step);
    let bits = this.#state;
    bits = BigInt.asUintN(64, (bits ^ (bits >> 30n)) * 0xbf58476d1ce4e5b9n);
    bits = BigInt.asUintN(64, (bits ^ (bits >> 27n)) * 0x94d049bb133111ebn);
    return bits ^ (bits >> 31n);
  }

  /** A multiple of 2^-53 in [0, 1). */
  uniform(): number {
    return Number(this.next() >> 11n) / 2 ** 53;
  }
}
