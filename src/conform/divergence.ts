/** How far the next-token distributions of a run on its own values are from the reference's, and how far they may be. */
import { klDivergence } from '../sampling/distribution.ts';
import type { Limits } from './bands.ts';

export interface DivergenceResult {
  /** Per token: the divergence of the candidate's next-token distribution from the reference's, in nats; Infinity for NaN. */
  readonly tokens: readonly number[];
  readonly mean: number;
  /** What the mean may be; null where bits are compared. */
  readonly allowed: number | null;
  /** The reference's mean divergence from itself with activations in bf16, where the allowance comes from that. */
  readonly ofRounding: number | null;
}

/** Per token of logits [tokens][width]; 0 for equal values, also where they are no distribution. */
export function divergences(reference: Float32Array, candidate: Float32Array, width: number): number[] {
  return Array.from({ length: candidate.length / width }, (_, token) => {
    const [p, q] = [reference, candidate].map((logits) => logits.subarray(token * width, (token + 1) * width));
    if (p!.every((logit, id) => Object.is(logit, q![id]))) return 0;
    const kl = klDivergence(p!, q!);
    // Rounding may leave a negative zero's worth; the divergence of distributions is never negative.
    return Number.isNaN(kl) ? Number.POSITIVE_INFINITY : Math.max(0, kl);
  });
}

/**
 * Judges by the limit, or where the model itself makes more of any rounding, by what the reference's does; `measureRounding`
 * gives the divergences of that.
 */
export async function judgeDivergence(
  tokens: readonly number[],
  limits: Limits | null,
  measureRounding: () => Promise<readonly number[]>,
): Promise<DivergenceResult> {
  const mean = meanOf(tokens);
  if (limits === null || mean <= limits.kl) return { tokens, mean, allowed: limits?.kl ?? null, ofRounding: null };
  const ofRounding = meanOf(await measureRounding());
  return { tokens, mean, allowed: Math.max(limits.kl, limits.rounding * ofRounding), ofRounding };
}

function meanOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
