import type { GenerationTiming } from '../scheduler/types.ts';

/** Times of a generation that ended on this side, before the engine could report its own. */
export class Stopwatch {
  readonly #created = performance.now();
  #start = this.#created;
  #firstToken: number | null = null;

  started(): void {
    this.#start = performance.now();
  }

  token(): void {
    this.#firstToken ??= performance.now();
  }

  timing(promptTokens: number, decodedTokens: number): GenerationTiming {
    const now = performance.now();
    const first = this.#firstToken ?? now;
    return {
      queueMilliseconds: this.#start - this.#created,
      promptMilliseconds: first - this.#start,
      decodeMilliseconds: now - first,
      promptTokens,
      decodedTokens,
    };
  }
}
