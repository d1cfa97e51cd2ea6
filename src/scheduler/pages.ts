/** The free list of KV pages: which pages of the state memory belong to nobody. Storage and layout are the core's business. */
import { pageTokens } from '../runtime/runtime.ts';

/** Pages that hold `positions` positions. */
export function pagesFor(positions: number): number {
  return Math.ceil(positions / pageTokens);
}

export class PagePool {
  readonly #free: number[] = [];
  /** 1 while a page is lent. Catches a page given back twice, which would let two sequences write the same positions. */
  readonly #lent: Uint8Array;

  constructor(pages: number) {
    this.#lent = new Uint8Array(pages);
    for (let page = pages - 1; page >= 0; page--) this.#free.push(page);
  }

  get free(): number {
    return this.#free.length;
  }

  take(count: number): number[] {
    if (count > this.#free.length) {
      throw new RangeError(`${count} KV pages wanted, ${this.#free.length} free: the scheduler admitted too much`);
    }
    const pages = this.#free.splice(this.#free.length - count, count).reverse();
    for (const page of pages) this.#lent[page] = 1;
    return pages;
  }

  give(pages: readonly number[]): void {
    for (const page of pages) {
      if (this.#lent[page] !== 1) throw new RangeError(`KV page ${page} was given back twice`);
      this.#lent[page] = 0;
      this.#free.push(page);
    }
  }
}
