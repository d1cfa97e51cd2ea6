/** The least time a decoded token can take: the GPU and the ranks, one after the other, read their weights once. */
import type { ModelConfig } from '../model/config.ts';
import type { ModelTensors } from '../model/tensors.ts';
import { activeBytes } from '../runtime/place.ts';
import type { Plan } from '../select/select.ts';

/** Bytes of weights that one token reads on either side. */
export interface TokenBytes {
  readonly device: number;
  readonly ranks: number;
}

/** Experts are chosen alike in the mean: of those that a token uses, a layer's device computes the share that it holds. */
export function tokenBytes(
  config: ModelConfig,
  tensors: ModelTensors,
  { backend, devices }: Pick<Plan, 'backend' | 'devices'>,
): TokenBytes {
  const all = activeBytes(config, tensors);
  if (devices === null) return { device: 0, ranks: all };
  if (backend === 'cuda') return { device: all, ranks: 0 };
  let ranks = 0;
  for (const [layer, slots] of tensors.layers.entries()) {
    const elsewhere = 1 - (devices.residentExperts[layer] ?? 0) / config.experts;
    for (const [slot, { bytes }] of Object.entries(slots)) {
      if (slot.endsWith('_exps')) ranks += (bytes / config.experts) * config.expertsUsed * elsewhere;
    }
  }
  return { device: all - ranks, ranks };
}

/** Milliseconds of a token at least, at these GB a second; null where a rate that counts is not known. */
export function rooflineMilliseconds(
  bytes: TokenBytes,
  rates: { readonly device: number | null; readonly ranks: number | null },
): number | null {
  const parts = (['device', 'ranks'] as const).map((side) => {
    const rate = rates[side];
    if (bytes[side] === 0) return 0;
    return rate === null ? null : bytes[side] / rate / 1e6;
  });
  return parts.reduce((sum, part) => (sum === null || part === null ? null : sum + part), 0);
}
