/** What one engine step computes: which tokens of which sequences, within the limits of the runtime. */
import type { RuntimeLimits, StepBatch } from '../runtime/runtime.ts';
import type { Sequence } from './sequence.ts';

export interface StepPart {
  readonly sequence: Sequence;
  /** Tokens of this sequence in the step, from its position `computed`. */
  readonly count: number;
  /** Row of the step's logits, or null while the prompt is not yet complete. */
  readonly output: number | null;
}

/**
 * Shares the step out. Sequences that decode come first, since each costs one token and somebody waits for it; what is left
 * of the batch goes to prompts, in order.
 */
export function planStep(sequences: readonly Sequence[], limits: RuntimeLimits): StepPart[] {
  const pending = (sequence: Sequence) => sequence.tokens.length - sequence.computed;
  const decoding = sequences.filter((sequence) => pending(sequence) === 1);
  const prompting = sequences.filter((sequence) => pending(sequence) > 1);
  const parts: StepPart[] = [];
  let room = limits.batchTokens;
  let outputs = 0;
  for (const sequence of [...decoding, ...prompting]) {
    if (room === 0 || outputs === limits.batchOutputs || parts.length === limits.batchSequences) break;
    const count = Math.min(pending(sequence), room);
    const complete = count === pending(sequence);
    parts.push({ sequence, count, output: complete ? outputs : null });
    room -= count;
    if (complete) outputs++;
  }
  return parts;
}

/** The step as the runtime wants it. The sequences' pages must already reach the last planned position. */
export function stepBatch(parts: readonly StepPart[]): StepBatch {
  const total = parts.reduce((sum, part) => sum + part.count, 0);
  const tokens = new Int32Array(total);
  const positions = new Int32Array(total);
  const sequences = new Int32Array(total);
  const outputs: number[] = [];
  let next = 0;
  parts.forEach(({ sequence, count, output }, index) => {
    for (let i = 0; i < count; i++, next++) {
      tokens[next] = sequence.tokens[sequence.computed + i] as number;
      positions[next] = sequence.computed + i;
      sequences[next] = index;
    }
    if (output !== null) outputs.push(next - 1);
  });
  const pageTables = parts.map((part) => Int32Array.from(part.sequence.pages));
  return { tokens, positions, sequences, pageTables, outputs: Int32Array.from(outputs) };
}
