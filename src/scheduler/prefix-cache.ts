/**
 * The pages of the sequence that ended last, kept until someone needs the room. A request whose prompt begins with the same
 * tokens takes them over and computes only the rest; the engine is exact per position, so the result has the same bits.
 */
import { type PagePool, pagesFor } from './pages.ts';

interface Kept {
  /** The tokens whose latents the pages hold. */
  readonly tokens: readonly number[];
  readonly pages: readonly number[];
}

export interface Claim {
  readonly pages: number[];
  /** Positions of the prompt that need not be computed. */
  readonly tokens: number;
}

export class PrefixCache {
  readonly #pool: PagePool;
  #kept: Kept | null = null;

  constructor(pool: PagePool) {
    this.#pool = pool;
  }

  /** Pages that `evict` would free. */
  get pages(): number {
    return this.#kept?.pages.length ?? 0;
  }

  /** Takes over the pages of an ended sequence, of which the first `tokens.length` positions are computed. */
  keep(tokens: readonly number[], pages: readonly number[]): void {
    this.evict();
    const used = pagesFor(tokens.length);
    this.#pool.give(pages.slice(used));
    if (used > 0) this.#kept = { tokens, pages: pages.slice(0, used) };
  }

  /** Hands out the pages of the common prefix. The last token of a prompt is always left to compute: it gives the logits. */
  claim(prompt: readonly number[]): Claim {
    const kept = this.#kept;
    if (kept === null) return { pages: [], tokens: 0 };
    const tokens = Math.min(commonPrefix(kept.tokens, prompt), prompt.length - 1);
    if (tokens === 0) return { pages: [], tokens: 0 };
    const used = pagesFor(tokens);
    this.#pool.give(kept.pages.slice(used));
    this.#kept = null;
    return { pages: kept.pages.slice(0, used), tokens };
  }

  evict(): void {
    if (this.#kept !== null) this.#pool.give(this.#kept.pages);
    this.#kept = null;
  }
}

function commonPrefix(a: readonly number[], b: readonly number[]): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return i;
  return length;
}
