/** The output types of `perigee convert`, a selection of src/model's mixes: those that have encoders. */
import type { GgmlTypeName } from '../gguf/types.ts';
import { mixType, type WeightMix } from '../model/weight-mix.ts';
import type { HfConfig } from './hf-config.ts';
import type { TargetTensor } from './names.ts';

export const convertTypes = [
  'f32',
  'f16',
  'bf16',
  'q8_0',
  'q4_0',
  'q4_k_m',
  'q5_k_m',
  'q6_k',
] as const satisfies WeightMix[];
export type ConvertType = (typeof convertTypes)[number];

/** The type `target` gets. An embedding that is the output matrix as well is treated as that. */
export function chooseTensorType(type: ConvertType, target: TargetTensor, config: HfConfig): GgmlTypeName {
  const { spec, layer } = target;
  const head = config.tiedEmbeddings && spec.slot === 'token_embd';
  return mixType(type, head ? { ...spec, slot: 'output' } : spec, layer, config.layers);
}
