/** What one backend owes another at each point of the forward pass. */
import type { Runtime } from '../runtime/runtime.ts';

export interface Band {
  readonly name: string;
  /** Null: every bit is equal. */
  readonly limits: Limits | null;
}

export interface Limits {
  /** The normalized mean square error that a stage may add to those it began with. */
  readonly nmse: number;
  /** How many times over a stage may hand on the largest error it began with: norms and softmax sharpen differences. */
  readonly growth: number;
  /** Experts must be those of the backend's own scores; between scores that differ by less, either. */
  readonly tie: number;
  /** The largest mean divergence of the next-token distributions, nats. */
  readonly kl: number;
}

const equalBits: Band = { name: 'equal bits', limits: null };

/**
 * A GPU adds in other orders, rounds activations in other groups, and keeps the cache in bf16. Backends run on their own
 * values, so a stage is judged by what it makes of the differences that came before it.
 */
const device: Band = {
  name: 'each stage adds an NMSE of at most 5e-4, experts follow the scores but for ties within 1e-3, KL divergence at most 1e-3',
  limits: { nmse: 5e-4, growth: 16, tie: 1e-3, kl: 1e-3 },
};

/** CPU backends compute the same bits (engine/kernels/kernels.h); where a GPU takes part on either side, bands apply. */
export function bandFor(...backends: readonly Runtime['backend'][]): Band {
  return backends.some((backend) => backend === 'hybrid' || backend === 'cuda') ? device : equalBits;
}
