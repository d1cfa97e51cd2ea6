/**
 * Finds stop strings in text that arrives in pieces. Text that may be the beginning of a stop string is held back until it is
 * one, and removed with it, or turns out not to be.
 */
export class StopStrings {
  readonly #stops: readonly string[];
  #held = '';

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /**
   * The text that may go out now, and the stop string that ends it, if one is there. The match that is complete first wins, so
   * the result does not depend on how the text was cut; of two that end together, the longer.
   */
  push(text: string): { text: string; stop: string | null } {
    if (this.#stops.length === 0) return { text, stop: null };
    const all = this.#held + text;
    const matches = this.#stops
      .map((stop) => ({ stop, start: all.indexOf(stop) }))
      .filter(({ start }) => start >= 0)
      .sort((a, b) => a.start + a.stop.length - (b.start + b.stop.length) || a.start - b.start);
    const first = matches[0];
    const end = first?.start ?? all.length - this.#longestBeginning(all);
    this.#held = first === undefined ? all.slice(end) : '';
    return { text: all.slice(0, end), stop: first?.stop ?? null };
  }

  /** The text held back, when no more follows. */
  end(): string {
    const held = this.#held;
    this.#held = '';
    return held;
  }

  /** Length of the longest ending of `text` that a stop string begins with. */
  #longestBeginning(text: string): number {
    let longest = 0;
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
