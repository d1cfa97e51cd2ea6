/** What one backend owes another at each point of the forward pass. */
import type { Runtime } from '../runtime/runtime.ts';

export interface Band {
  readonly name: string;
  /** Null: every bit is equal. */
  readonly limits: Limits | null;
}

export interface Limits {
  /** The largest normalized mean square error of a tap. */
  readonly nmse: number;
  /** Experts may differ where the scores they were chosen by differ by less. */
  readonly tie: number;
  /** The largest mean divergence of the next-token distributions, nats. */
  readonly kl: number;
}

const equalBits: Band = { name: 'equal bits', limits: null };

/** A GPU adds in other orders, rounds activations in other groups, and keeps the cache in bf16. */
const device: Band = {
  name: 'NMSE at most 5e-4, experts equal but for ties within 1e-3, KL divergence at most 1e-3',
  limits: { nmse: 5e-4, tie: 1e-3, kl: 1e-3 },
};

/** CPU backends compute the same bits (engine/kernels/kernels.h); where a GPU takes part on either side, bands apply. */
export function bandFor(...backends: readonly Runtime['backend'][]): Band {
  return backends.some((backend) => backend === 'hybrid' || backend === 'cuda') ? device : equalBits;
}
