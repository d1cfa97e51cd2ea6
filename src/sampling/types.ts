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
  /** Same seed, same prompt, same options: same tokens. */
  readonly seed: number;
}
