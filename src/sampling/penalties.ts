import type { SamplingOptions } from './types.ts';

/** Changes of single logits: the bias asked for, and the penalties for tokens that were there already. */
export class LogitAdjustments {
  readonly #options: SamplingOptions;
  /** Tokens of the prompt and generated ones, once each; kept only where the repetition penalty needs them. */
  readonly #seen: Set<number>;
  /** How often each token was generated. */
  readonly #counts = new Map<number, number>();
  readonly #penalizesSeen: boolean;
  readonly #penalizesCounts: boolean;
  #generated = 0;

  constructor(options: SamplingOptions, prompt: ArrayLike<number>) {
    this.#options = options;
    this.#penalizesSeen = options.repetitionPenalty !== 1;
    this.#penalizesCounts = options.presencePenalty !== 0 || options.frequencyPenalty !== 0;
    this.#seen = new Set(this.#penalizesSeen ? Array.from(prompt) : []);
  }

  /** False if `apply` would change nothing. */
  get any(): boolean {
    return (
      this.#options.logitBias.length > 0 ||
      this.#seen.size > 0 ||
      (this.#penalizesCounts && this.#counts.size > 0) ||
      this.postpones
    );
  }

  get #postponed(): readonly number[] {
    const { postponed } = this.#options;
    return postponed !== undefined && this.#generated < postponed.count ? postponed.tokens : [];
  }

  /** Whether ends are still put off. */
  get postpones(): boolean {
    return this.#postponed.length > 0;
  }

  /** `postpone`: with ends put off that are. */
  apply(logits: Float64Array, postpone: boolean): void {
    const { logitBias, repetitionPenalty, presencePenalty, frequencyPenalty } = this.#options;
    for (const [id, bias] of logitBias) logits[id]! += bias;
    for (const id of this.#seen) {
      const logit = logits[id]!;
      logits[id] = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty;
    }
    if (this.#penalizesCounts) {
      for (const [id, count] of this.#counts) logits[id]! -= presencePenalty + frequencyPenalty * count;
    }
    if (postpone) for (const id of this.#postponed) logits[id] = Number.NEGATIVE_INFINITY;
  }

  record(token: number): void {
    this.#generated++;
    if (this.#penalizesSeen) this.#seen.add(token);
    if (this.#penalizesCounts) this.#counts.set(token, (this.#counts.get(token) ?? 0) + 1);
  }
}
