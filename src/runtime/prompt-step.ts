import { pageTokens, type StepBatch } from './runtime.ts';

/**
 * The step that runs tokens [begin, end) of one prompt alone, in the first pages of the cache: for scoring and comparing,
 * where nothing else is in flight. It asks for every token's logits.
 */
export function promptStep(prompt: readonly number[], begin: number, end: number): StepBatch {
  const tokens = Int32Array.from(prompt.slice(begin, end));
  const indices = tokens.map((_, index) => index);
  return {
    tokens,
    positions: indices.map((index) => begin + index),
    sequences: new Int32Array(tokens.length),
    pageTables: [Int32Array.from({ length: Math.ceil(prompt.length / pageTokens) }, (_, page) => page)],
    outputs: indices,
  };
}
