/** What one engine step computes: which tokens of which sequences. */
import { pageTokens, type StepBatch } from '../runtime/runtime.ts';
import type { Sequence } from './sequence.ts';

export interface StepPart {
  readonly sequence: Sequence;
  /** Tokens of this sequence in the step, from its position `computed`. */
  readonly count: number;
}

/**
 * Shares `batchTokens` tokens out among `sequences`, oldest first, of which there are no more than that. Those that decode come
 * first: each costs one token and somebody waits for it. Of the rest the oldest prompt is sure of its even share, so that none
 * starves; what remains goes to the prompts that need least, so that short ones start soon.
 */
export function planStep(sequences: readonly Sequence[], batchTokens: number): StepPart[] {
  const parts: StepPart[] = sequences
    .filter((sequence) => sequence.pending === 1)
    .map((sequence) => ({ sequence, count: 1 }));
  const [oldest, ...others] = withoutTwins(sequences.filter((sequence) => sequence.pending > 1));
  if (oldest === undefined) return parts;
  const room = batchTokens - parts.length;
  const sure = Math.min(oldest.pending, room, Math.max(pageTokens, Math.floor(room / (1 + others.length))));
  let left = room - sure;
  for (const sequence of others.sort((a, b) => a.pending - b.pending)) {
    const count = Math.min(sequence.pending, left);
    if (count > 0) parts.push({ sequence, count });
    left -= count;
  }
  parts.push({ sequence: oldest, count: Math.min(oldest.pending, sure + left) });
  return parts;
}

/**
 * Leaves out the sequences that would begin a page which an older one is computing from the same text: they take that page over
 * when it is done. So a prompt that several requests share is computed once.
 */
function withoutTwins(prompting: readonly Sequence[]): Sequence[] {
  const underWay = new Set<string>();
  return prompting.filter((sequence) => {
    const key = sequence.table.nextPageKey(sequence.tokens);
    if (key === null) return true;
    if (underWay.has(key) && sequence.computed === sequence.table.sharedPositions) return false;
    underWay.add(key);
    return true;
  });
}

/**
 * The step as the runtime wants it, with one row of logits for each part that completes what its sequence has, in their order.
 * The sequences' pages must already reach the last planned position.
 */
export function stepBatch(parts: readonly StepPart[]): StepBatch {
  const total = parts.reduce((sum, part) => sum + part.count, 0);
  const tokens = new Int32Array(total);
  const positions = new Int32Array(total);
  const sequences = new Int32Array(total);
  const outputs: number[] = [];
  let next = 0;
  parts.forEach(({ sequence, count }, index) => {
    for (let i = 0; i < count; i++, next++) {
      tokens[next] = sequence.tokens[sequence.computed + i] as number;
      positions[next] = sequence.computed + i;
      sequences[next] = index;
    }
    if (count === sequence.pending) outputs.push(next - 1);
  });
  const pageTables = parts.map((part) => Int32Array.from(part.sequence.table.pages));
  return { tokens, positions, sequences, pageTables, outputs: Int32Array.from(outputs) };
}
