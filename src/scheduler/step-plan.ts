/** What one engine step computes: which tokens of which sequences. */
import { pageTokens, type StepBatch } from '../runtime/runtime.ts';
import type { Sequence } from './sequence.ts';

export interface StepPart {
  readonly sequence: Sequence;
  /** Tokens of this sequence in the step, from its position `computed`. */
  readonly count: number;
}

/** What one step may have. */
export interface StepLimits {
  readonly batchTokens: number;
  readonly batchOutputs: number;
}

/** A plan in which no step has more rows of logits than it may: prompts that are scored get shorter parts. */
export function planStep(sequences: readonly Sequence[], { batchTokens, batchOutputs }: StepLimits): StepPart[] {
  const parts = shareOut(sequences, batchTokens);
  // Each part may need one row for the token after it.
  let rows = batchOutputs - parts.length;
  return parts.map((part) => {
    const outputs = part.sequence.outputs(part.count);
    if (outputs.length <= rows + 1) {
      rows -= Math.max(0, outputs.length - 1);
      return part;
    }
    const count = 1 + (outputs[rows] as number);
    rows = 0;
    return { sequence: part.sequence, count };
  });
}

/**
 * Shares `batchTokens` tokens out among `sequences`, oldest first, of which there are no more than that. Those that decode come
 * first: each costs one token and somebody waits for it. Of the rest the oldest prompt is sure of its even share, so that none
 * starves; what remains goes to the prompts that need least, so that short ones start soon.
 */
function shareOut(sequences: readonly Sequence[], batchTokens: number): StepPart[] {
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
 * A prompt that is scored needs all of its logits and takes nothing over.
 */
function withoutTwins(prompting: readonly Sequence[]): Sequence[] {
  const underWay = new Set<string>();
  return prompting.filter((sequence) => {
    const key = sequence.table.nextPageKey(sequence.tokens);
    if (key === null || sequence.scoring) return true;
    if (underWay.has(key) && sequence.computed === sequence.table.sharedPositions) return false;
    underWay.add(key);
    return true;
  });
}

/**
 * The step as the runtime wants it, with the rows of logits that each part's sequence wants, in their order.
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
    outputs.push(...sequence.outputs(count).map((i) => next + i));
    for (let i = 0; i < count; i++, next++) {
      tokens[next] = sequence.tokens[sequence.computed + i] as number;
      positions[next] = sequence.computed + i;
      sequences[next] = index;
    }
  });
  const pageTables = parts.map((part) => Int32Array.from(part.sequence.table.pages));
  return { tokens, positions, sequences, pageTables, outputs: Int32Array.from(outputs) };
}
