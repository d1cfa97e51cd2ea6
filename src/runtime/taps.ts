/** Names and shapes of the engine's taps: activations between stages, kept for whoever compares two backends. */
import type { ModelConfig } from '../model/config.ts';

/** In the order of engine/taps.h. Within a layer it is also the order of the forward pass. */
export const tapNames = [
  'embedding',
  'latent',
  'attention',
  'router-scores',
  'router-choices',
  'feed-forward',
  'residual',
] as const;
export type TapName = (typeof tapNames)[number];

/** One tap of one layer. */
export interface TapPoint {
  readonly tap: TapName;
  readonly layer: number;
  /** Values of one token. */
  readonly width: number;
}

/** Every tap the model has, in the order of the forward pass. */
export function tapPoints(config: ModelConfig): TapPoint[] {
  const { layers, denseLayers, hidden } = config;
  const widths: Record<TapName, number> = {
    embedding: hidden,
    latent: config.kvRank + config.ropeDim,
    attention: config.heads * config.valueDim,
    'router-scores': config.experts,
    'router-choices': config.expertsUsed,
    'feed-forward': hidden,
    residual: hidden,
  };
  return Array.from({ length: layers }, (_, layer) =>
    tapNames
      .filter((tap) => (tap === 'embedding' ? layer === 0 : !tap.startsWith('router') || layer >= denseLayers))
      .map((tap) => ({ tap, layer, width: widths[tap] })),
  ).flat();
}
