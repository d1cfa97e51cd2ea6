/** A bounded pipe of events from the scheduler's loop to one consumer. */
import type { GenerationEvent } from './types.ts';

/**
 * Events a consumer may lag behind before its sequence pauses: about the tokens of one screen line, so that a burst of
 * network delay costs no steps, and a stopped reader costs a few KB.
 */
const bound = 64;
/** A channel that was full counts as such until this few are left: work resumes for a stretch, not for every event read. */
const resumeAt = bound / 2;

export class EventChannel {
  readonly #events: GenerationEvent[] = [];
  readonly #drained: () => void;
  #fullSince: number | null = null;
  #closed = false;
  #failure: unknown = null;
  #wake: (() => void) | null = null;

  /** `drained` is called when the consumer has made room in a full channel. */
  constructor(drained: () => void) {
    this.#drained = drained;
  }

  get full(): boolean {
    return this.#fullSince !== null;
  }

  /** Milliseconds that it has been full. */
  get fullFor(): number {
    return this.#fullSince === null ? 0 : performance.now() - this.#fullSince;
  }

  push(event: GenerationEvent): void {
    if (this.#closed) return;
    this.#events.push(event);
    if (this.#events.length >= bound) this.#fullSince ??= performance.now();
    this.#signal();
  }

  /** No more events; the consumer still gets those already pushed. */
  end(): void {
    this.#closed = true;
    this.#signal();
  }

  /** Fails the consumer at once, dropping what it has not read. */
  fail(failure: unknown): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#failure = failure;
    this.#events.length = 0;
    this.#signal();
  }

  async *read(): AsyncGenerator<GenerationEvent, void, undefined> {
    for (;;) {
      const event = this.#events.shift();
      if (event !== undefined) {
        if (this.full && this.#events.length <= resumeAt) {
          this.#fullSince = null;
          this.#drained();
        }
        yield event;
      } else if (this.#closed) {
        if (this.#failure !== null) throw this.#failure;
        return;
      } else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    }
  }

  #signal(): void {
    this.#wake?.();
    this.#wake = null;
  }
}
