/** How the next token is chosen from the logits. All fields are plain data: they travel between the processes. */
export interface SamplingOptions {
  /** 0: greedy (the largest logit, lowest id among equals). */
  readonly temperature: number;
  readonly topP: number;
  /** 0: off. */
  readonly topK: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  /** Added to the logits of these token ids before anything else; -Infinity forbids a token. */
  readonly logitBias: readonly (readonly [id: number, bias: number])[];
  /** These tokens are none of the first `count`, unless a constraint leaves nothing else: ends, for an answer of that length. */
  readonly postponed?: { readonly tokens: readonly number[]; readonly count: number };
  /** Same seed, same prompt, same options: same tokens. */
  readonly seed: number;
}

/** Chooses the tokens of one sequence. */
export interface Sampler {
  /**
   * The next token, given the logits over the whole vocabulary, which are left as they are. `allowed` has a bit for each
   * token, the lowest of the first word for id 0; absent or null: any. The token is remembered for the penalties. Throws
   * NO_TOKEN_ALLOWED when nothing can be chosen.
   */
  next(logits: Float32Array, allowed?: Int32Array | null): number;
}
