/** The pages of one sequence: first those shared with others through the prefix cache, then its own. */
import { pageTokens } from '../runtime/runtime.ts';
import { type PagePool, pagesFor } from './pages.ts';
import { type CachedPage, keyOf, type PrefixCache } from './prefix-cache.ts';

export class PageTable {
  /** Page i holds positions 64 i and on. */
  readonly pages: number[] = [];
  readonly #pool: PagePool;
  readonly #cache: PrefixCache;
  /** The first of `pages`: full, computed, and never written again. */
  readonly #shared: CachedPage[] = [];

  constructor(pool: PagePool, cache: PrefixCache) {
    this.#pool = pool;
    this.#cache = cache;
  }

  /** Positions in shared pages. */
  get sharedPositions(): number {
    return this.#shared.length * pageTokens;
  }

  /**
   * Takes over what is cached of `tokens` beyond the shared pages; there must be no other pages. Returns the positions that
   * need not be computed. The last token is always left: it gives the logits.
   */
  adopt(tokens: readonly number[]): number {
    for (let start = this.sharedPositions; start + pageTokens < tokens.length; start += pageTokens) {
      const found = this.#cache.find(this.#tip(), tokens, start);
      if (found === null) break;
      this.#cache.use(found);
      this.#shared.push(found);
      this.pages.push(found.page);
    }
    const start = this.sharedPositions;
    const tail = this.#cache.takeTail(this.#tip(), tokens, start, tokens.length - 1);
    if (tail === null) return start;
    this.pages.push(tail.page);
    return start + tail.tokens;
  }

  /** Makes the pages reach `positions`. False, and nothing taken, if not even idle pages are enough. */
  reach(positions: number): boolean {
    const missing = pagesFor(positions) - this.pages.length;
    if (missing <= 0) return true;
    if (missing > this.#pool.free + this.#cache.idle) return false;
    this.#cache.evict(missing);
    this.pages.push(...this.#pool.take(missing));
    return true;
  }

  /** Shares every page that the first `computed` positions have filled. */
  share(tokens: readonly number[], computed: number): void {
    for (let start = this.sharedPositions; start + pageTokens <= computed; start += pageTokens) {
      const index = this.#shared.length;
      const text = tokens.slice(start, start + pageTokens);
      const shared = this.#cache.share(this.#tip(), text, this.pages[index] as number);
      this.#shared.push(shared);
      this.pages[index] = shared.page;
    }
  }

  /** Lets go of everything; what is computed stays in the cache for texts that go on from it. */
  release(tokens: readonly number[], computed: number): void {
    const start = this.sharedPositions;
    const own = this.pages.slice(this.#shared.length);
    const tail = own[0];
    if (computed > start && tail !== undefined) {
      this.#cache.keepTail(this.#tip(), tokens.slice(start, computed), tail);
      own.shift();
    }
    this.#pool.give(own);
    for (const shared of this.#shared.splice(0).reverse()) this.#cache.leave(shared);
    this.pages.length = 0;
  }

  /** Names the text up to the end of the first page that is not shared, or null if `tokens` end before it does. */
  nextPageKey(tokens: readonly number[]): string | null {
    const start = this.sharedPositions;
    if (start + pageTokens >= tokens.length) return null;
    return `${this.#tip()?.id ?? 0}:${keyOf(tokens.slice(start, start + pageTokens))}`;
  }

  #tip(): CachedPage | null {
    return this.#shared.at(-1) ?? null;
  }
}

/** Pages that `tokens` need from those nobody uses, and one more position for the first answer token. */
export function pagesToStart(cache: PrefixCache, tokens: readonly number[]): number {
  let needed = pagesFor(tokens.length + 1);
  let parent: CachedPage | null = null;
  for (let start = 0; start + pageTokens < tokens.length; start += pageTokens) {
    parent = cache.find(parent, tokens, start);
    if (parent === null || parent.users === 0) break;
    needed--;
  }
  return needed;
}
