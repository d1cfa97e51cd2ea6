/**
 * Which pages hold which tokens: a tree of pages, where the path from the root to a page is the text before it. A page is full
 * and shared by every sequence that begins with that path; the engine is exact per position, so shared latents have the same
 * bits as recomputed ones. Pages without users stay until somebody needs the room, least recently used first.
 */
import { pageTokens } from '../runtime/runtime.ts';
import type { PagePool } from './pages.ts';

/** A page in the tree. One with fewer than `pageTokens` tokens is a tail: the last page of a sequence that ended. */
export interface CachedPage {
  readonly id: number;
  readonly page: number;
  readonly tokens: readonly number[];
  readonly parent: CachedPage | null;
  /** By the tokens they hold. */
  readonly children: Map<string, CachedPage>;
  /** Sequences whose text goes through this page. A parent has at least as many as any child. */
  users: number;
}

/** A tail handed to one sequence, which may write on from `tokens`. */
export interface Tail {
  readonly page: number;
  /** Tokens in it that agree. */
  readonly tokens: number;
}

export class PrefixCache {
  readonly #pool: PagePool;
  readonly #root: Map<string, CachedPage> = new Map();
  /**
   * Pages without users, in the order they lost the last one. Sequences let go of their last page first, so a page comes after
   * all pages that hang from it: the first is always a leaf.
   */
  readonly #idle = new Set<CachedPage>();
  #nextId = 1;

  constructor(pool: PagePool) {
    this.#pool = pool;
  }

  /** Pages that nobody uses and that could be had for others. */
  get idle(): number {
    return this.#idle.size;
  }

  /** The full page that goes on from `parent` with the `pageTokens` tokens at `start`, if it is there. */
  find(parent: CachedPage | null, tokens: readonly number[], start: number): CachedPage | null {
    return this.#below(parent).get(keyOf(tokens.slice(start, start + pageTokens))) ?? null;
  }

  /** Adds a user to a page; its parent must have one already. */
  use(cached: CachedPage): void {
    if (cached.users++ === 0) this.#idle.delete(cached);
  }

  /** Takes a user from a page; those hanging from it must have been left by the same user before. */
  leave(cached: CachedPage): void {
    if (--cached.users === 0) this.#idle.add(cached);
  }

  /**
   * Puts a full, computed page into the tree for the one sequence that owns it. If another sequence was first with the same
   * text, its page is returned and this one is free again.
   */
  share(parent: CachedPage | null, tokens: readonly number[], page: number): CachedPage {
    const twin = this.#below(parent).get(keyOf(tokens));
    if (twin !== undefined) this.#pool.give([page]);
    const cached = twin ?? this.#insert(parent, tokens, page);
    this.use(cached);
    return cached;
  }

  /** Keeps the unfinished last page of a sequence that ends. */
  keepTail(parent: CachedPage | null, tokens: readonly number[], page: number): void {
    if (this.#below(parent).has(keyOf(tokens))) this.#pool.give([page]);
    else this.#idle.add(this.#insert(parent, tokens, page));
  }

  /** Hands over the tail below `parent` that agrees longest with `tokens` from `start` to before `end`, if one does. */
  takeTail(parent: CachedPage | null, tokens: readonly number[], start: number, end: number): Tail | null {
    let best: CachedPage | null = null;
    let most = 0;
    for (const child of this.#below(parent).values()) {
      if (child.tokens.length === pageTokens) continue;
      const common = commonLength(child.tokens, tokens, start, end);
      if (common > most) [best, most] = [child, common];
    }
    if (best === null) return null;
    this.#remove(best);
    return { page: best.page, tokens: most };
  }

  /** Frees idle pages until the pool has `count` free ones, or none is idle. */
  evict(count: number): void {
    for (const cached of this.#idle) {
      if (this.#pool.free >= count) return;
      this.#remove(cached);
      this.#pool.give([cached.page]);
    }
  }

  #below(parent: CachedPage | null): Map<string, CachedPage> {
    return parent?.children ?? this.#root;
  }

  #insert(parent: CachedPage | null, tokens: readonly number[], page: number): CachedPage {
    const cached = { id: this.#nextId++, page, tokens, parent, children: new Map(), users: 0 };
    this.#below(parent).set(keyOf(tokens), cached);
    return cached;
  }

  #remove(cached: CachedPage): void {
    this.#idle.delete(cached);
    this.#below(cached.parent).delete(keyOf(cached.tokens));
  }
}

export function keyOf(tokens: readonly number[]): string {
  return tokens.join();
}

function commonLength(held: readonly number[], tokens: readonly number[], start: number, end: number): number {
  const most = Math.min(held.length, end - start);
  for (let i = 0; i < most; i++) if (held[i] !== tokens[start + i]) return i;
  return most;
}
