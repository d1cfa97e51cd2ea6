/** What one backend owes another at each point of the forward pass. */
import type { Runtime } from '../runtime/runtime.ts';
import type { TracePoint } from './trace.ts';

export interface Band {
  readonly name: string;
  /** Null: every bit is equal. */
  readonly limits: Limits | null;
}

export interface Limits {
  /** The largest normalized mean square error of each tap, every layer and the head begun with the reference's residual. */
  readonly nmse: Readonly<Record<Exclude<TracePoint['tap'], 'router-choices'>, number>>;
  /** Experts must be those of the backend's own scores; between scores that differ by less, either. */
  readonly tie: number;
  /** The largest mean divergence of the next-token distributions of a run on the backend's own values, nats. */
  readonly kl: number;
  /**
   * Where a model makes more of any rounding, as many times what the reference's own activations in bf16 do to it. A GPU
   * rounds its cache as well: errors of equal size that know nothing of each other have twice the square of one.
   */
  readonly rounding: number;
}

const equalBits: Band = { name: 'equal bits', limits: null };

/** What a stage may add. Errors pass on within a layer, so a tap has that of each stage before it in the layer too. */
const stage = 5e-4;

/** A GPU adds in other orders, rounds activations in other groups, and keeps the cache in bf16. */
const device: Band = {
  name: "an NMSE of at most 5e-4 a stage where each layer and the head begin with the reference's residual, experts by the scores but for ties within 1e-3",
  limits: {
    nmse: {
      embedding: stage,
      latent: stage,
      attention: 2 * stage,
      'router-scores': 3 * stage,
      'feed-forward': 4 * stage,
      residual: 4 * stage,
      logits: stage,
    },
    tie: 1e-3,
    kl: 1e-3,
    rounding: 2,
  },
};

/** Whether a backend's stages run on a GPU, and with other roundings than a CPU's. */
export function onDevice(backend: Runtime['backend']): boolean {
  return backend === 'hybrid' || backend === 'cuda';
}

/** What a backend owes a CPU: CPU backends compute the same bits (engine/kernels/kernels.h). */
export function bandFor(backend: Runtime['backend']): Band {
  return onDevice(backend) ? device : equalBits;
}
