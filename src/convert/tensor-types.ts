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

export interface TypeWishes {
  readonly type: ConvertType;
  /** For the matrix that makes the logits, whose errors nothing downstream evens out; default: what `type` gives it. */
  readonly head?: ConvertType;
}

/** The type `target` gets. An embedding that is the output matrix as well is treated as that. */
export function chooseTensorType(wishes: TypeWishes, target: TargetTensor, config: HfConfig): GgmlTypeName {
  const { spec, layer } = target;
  const head = spec.slot === 'output' || (config.tiedEmbeddings && spec.slot === 'token_embd');
  if (!head) return mixType(wishes.type, spec, layer, config.layers);
  return mixType(wishes.head ?? wishes.type, { ...spec, slot: 'output' }, layer, config.layers);
}
