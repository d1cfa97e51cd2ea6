/** What the whole Kimi K2 would do on this machine, from a few of its layers: it has the same layer 60 times. */
import { modelConfig } from '../model/gguf.ts';
import { syntheticModel } from '../model/synthetic.ts';
import { modelTensors } from '../model/tensors.ts';
import type { WeightMix } from '../model/weight-mix.ts';
import { activeBytes } from '../runtime/place.ts';
import type { StageTime } from '../runtime/runtime.ts';

/** Kimi K2 has 1 dense layer and 60 MoE layers, and ten times the vocabulary that the benchmark's shape has. */
const kimiK2 = { denseLayers: 1, moeLayers: 60, vocabulary: 163_840 };

const ofEveryLayer = ['qkv', 'query', 'attention', 'attention-out'];
const ofMoeLayers = ['router', 'experts-in', 'experts-out'];

export interface Measured {
  readonly tokens: number;
  readonly milliseconds: number;
  /** The first rank's time, stage by stage, over all tokens. */
  readonly stages: readonly StageTime[];
}

export interface LayerShape {
  readonly layers: number;
  readonly denseLayers: number;
  readonly vocabulary: number;
}

/** Milliseconds a token spends in one layer of each kind, and in embedding and head of the whole vocabulary. */
export interface TokenTimes {
  readonly moeLayer: number;
  readonly denseLayer: number;
  readonly head: number;
  readonly total: number;
}

/**
 * Splits a measured token over layers and scales it up; null where no MoE layer was measured. Waiting for other ranks and the
 * time between steps belong to no stage: they are shared out in proportion.
 */
export function projectTimes({ tokens, milliseconds, stages }: Measured, shape: LayerShape): TokenTimes | null {
  const moeLayers = shape.layers - shape.denseLayers;
  if (moeLayers === 0 || shape.denseLayers === 0) return null;
  const sum = (names: readonly string[]) =>
    stages.filter(({ stage }) => names.includes(stage)).reduce((total, each) => total + each.milliseconds, 0);
  const working = stages.reduce((total, each) => total + each.milliseconds, 0) - sum(['wait']);
  const scale = milliseconds / working / tokens;
  const attention = sum(ofEveryLayer) / shape.layers;
  const moeLayer = scale * (attention + sum(ofMoeLayers) / moeLayers);
  const denseLayer = scale * (attention + sum(['dense']) / shape.denseLayers);
  const head = scale * (sum(['embed']) + (sum(['head']) * kimiK2.vocabulary) / shape.vocabulary);
  return {
    moeLayer,
    denseLayer,
    head,
    total: kimiK2.moeLayers * moeLayer + kimiK2.denseLayers * denseLayer + head,
  };
}

/** Bytes of weights that one decoded token of the whole model reads. */
export function kimiK2ActiveBytes(mix: WeightMix): number {
  const gguf = syntheticModel({ shape: 'k2', mix, moeLayers: kimiK2.moeLayers });
  const config = modelConfig(gguf);
  const tensors = modelTensors(gguf, config);
  const head = tensors.output ?? tensors.token_embd;
  return activeBytes(config, tensors) + head.bytes * (kimiK2.vocabulary / config.vocabulary - 1);
}
