/** Runs prompts and answers on a runtime that nobody else uses, in the first pages of its cache. */
import { pageTokens, type Runtime } from '../../src/runtime/runtime.ts';

/** The same prompt for every engine: ids spread over the vocabulary of bench-1b, below its control tokens. */
export function promptTokens(count: number): number[] {
  return Array.from({ length: count }, (_, index) => (index * 7919 + 13) % 16_000);
}

/** Runs `tokens` from position `begin` in steps as large as the runtime takes; gives the likeliest next token. */
export async function runTokens(runtime: Runtime, tokens: readonly number[], begin: number): Promise<number> {
  const { batchTokens, context } = runtime.limits;
  const pages = Int32Array.from({ length: Math.ceil(context / pageTokens) }, (_, page) => page);
  let next = 0;
  for (let at = 0; at < tokens.length; at += batchTokens) {
    const part = Int32Array.from(tokens.slice(at, at + batchTokens));
    const logits = await runtime.step({
      tokens: part,
      positions: part.map((_, index) => begin + at + index),
      sequences: new Int32Array(part.length),
      pageTables: [pages],
      outputs: Int32Array.of(part.length - 1),
    });
    next = likeliest(logits);
  }
  return next;
}

/** Decodes `count` tokens behind `first`, which stands at position `begin`. */
export async function decodeTokens(runtime: Runtime, first: number, begin: number, count: number): Promise<void> {
  let next = first;
  for (let i = 0; i < count; i++) next = await runTokens(runtime, [next], begin + i);
}

function likeliest(logits: Float32Array): number {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if ((logits[id] ?? 0) > (logits[best] ?? 0)) best = id;
  return best;
}
