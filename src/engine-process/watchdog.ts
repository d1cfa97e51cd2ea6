/** Finds an engine process that hangs: a step that does not end, or a process that says nothing while it has work. */
import type { EngineStatistics } from '../scheduler/types.ts';

/** What a step has to read and multiply: the bytes of all weights, and of those that one token reads. */
export interface Weights {
  readonly bytes: number;
  readonly bytesPerToken: number;
}

type Step = NonNullable<EngineStatistics['step']>;

const tickMilliseconds = 1000;
/** What any step may take, and any silence: a machine that swaps or has its cores elsewhere needs seconds, not minutes. */
const patienceMilliseconds = 60_000;
/** Bytes a millisecond at which weights that are not in memory come from a slow disk; each is read once a step. */
const slowRead = 100e3;
/** Bytes of weights a millisecond that a slow machine multiplies with one token. Two cores with 128-bit vectors do 17 times that. */
const slowMultiply = 1e6;

/** Most time a step of so many tokens may take. */
export function stepLimit({ bytes, bytesPerToken }: Weights, tokens: number): number {
  const needed = tokens * bytesPerToken;
  return patienceMilliseconds + Math.min(bytes, needed) / slowRead + needed / slowMultiply;
}

export class Watchdog {
  readonly #weights: Weights;
  readonly #waiting: () => boolean;
  readonly #hung: (what: string) => void;
  readonly #timer: NodeJS.Timeout;
  #step: Step | null = null;
  // Counted in ticks of its own: in a front that was stopped itself no time passes, and what waits unread is read first.
  #stepTicks = 0;
  #silentTicks = 0;

  /** `waiting`: whether somebody waits for the engine. `hung` is called once. */
  constructor(weights: Weights, waiting: () => boolean, hung: (what: string) => void) {
    this.#weights = weights;
    this.#waiting = waiting;
    this.#hung = hung;
    this.#timer = setInterval(() => this.#tick(), tickMilliseconds).unref();
  }

  /** The engine has said which step is under way. */
  hear(step: Step | null): void {
    this.#silentTicks = 0;
    if (step?.number !== this.#step?.number) this.#stepTicks = 0;
    this.#step = step;
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #tick(): void {
    if (this.#step === null && !this.#waiting()) {
      this.#silentTicks = 0;
      return;
    }
    const limit = this.#step === null ? patienceMilliseconds : stepLimit(this.#weights, this.#step.tokens);
    const seconds = Math.ceil(limit / 1000);
    if (this.#step !== null && ++this.#stepTicks * tickMilliseconds > limit) {
      this.#end(`a step of ${this.#step.tokens} tokens did not end within ${seconds} s`);
    } else if (++this.#silentTicks * tickMilliseconds > limit) this.#end(`it said nothing for ${seconds} s`);
  }

  #end(what: string): void {
    this.stop();
    this.#hung(what);
  }
}
