/** Metadata of published models, as their GGUF files carry it, and their tensors by name and shape. */
import type { GgufModel, GgufTensor, GgufValue } from '../../src/gguf/types.ts';
import type { ModelConfig } from '../../src/model/config.ts';
import { globalSpecs, layerSpecs } from '../../src/model/tensors.ts';

type Keys = Readonly<Record<string, GgufValue>>;

function withPrefix(keys: Keys): Keys {
  return Object.fromEntries(Object.entries(keys).map(([key, value]) => [`deepseek2.${key}`, value]));
}

const absorbed: Keys = {
  'attention.key_length': 576,
  'attention.value_length': 512,
  'attention.key_length_mla': 192,
  'attention.value_length_mla': 128,
  'attention.head_count_kv': 1,
};
const yarn = (factor: number, multiplier: number): Keys => ({
  'rope.scaling.type': 'yarn',
  'rope.scaling.factor': factor,
  'rope.scaling.original_context_length': 4096,
  'rope.scaling.yarn_log_multiplier': Math.fround(multiplier),
});
const common: Keys = { 'attention.kv_lora_rank': 512, 'rope.dimension_count': 64 };

const kimi: Keys = {
  ...common,
  ...absorbed,
  block_count: 61,
  leading_dense_block_count: 1,
  embedding_length: 7168,
  feed_forward_length: 18_432,
  vocab_size: 163_840,
  'attention.head_count': 64,
  'attention.q_lora_rank': 1536,
  expert_count: 384,
  expert_used_count: 8,
  expert_shared_count: 1,
  expert_feed_forward_length: 2048,
  expert_group_count: 1,
  expert_group_used_count: 1,
  expert_gating_func: 2,
  expert_weights_scale: Math.fround(2.827),
  expert_weights_norm: true,
  'rope.freq_base': 50_000,
};

/** K2-Instruct of July 2025; files of that time carry no betas. */
export const kimiK2: Keys = withPrefix({
  ...kimi,
  ...yarn(32, 0.1),
  context_length: 131_072,
  'attention.layer_norm_rms_epsilon': Math.fround(1e-6),
});

/** The shape shared by K2-Instruct-0905, K2-Thinking and K2.5. */
export const kimiLater: Keys = withPrefix({
  ...kimi,
  ...yarn(64, 0.1),
  context_length: 262_144,
  'attention.layer_norm_rms_epsilon': Math.fround(1e-5),
});

export const deepseekV3: Keys = withPrefix({
  ...common,
  ...absorbed,
  ...yarn(40, 0.1),
  block_count: 61,
  leading_dense_block_count: 3,
  embedding_length: 7168,
  feed_forward_length: 18_432,
  context_length: 163_840,
  vocab_size: 129_280,
  'attention.head_count': 128,
  'attention.q_lora_rank': 1536,
  expert_count: 256,
  expert_used_count: 8,
  expert_shared_count: 1,
  expert_feed_forward_length: 2048,
  expert_group_count: 8,
  expert_group_used_count: 4,
  expert_gating_func: 2,
  expert_weights_scale: 2.5,
  expert_weights_norm: true,
  'attention.layer_norm_rms_epsilon': Math.fround(1e-6),
});

/** A file of 2024: heads in key_length, no gating function, no groups, no rope base. */
export const deepseekV2Lite: Keys = withPrefix({
  ...common,
  ...yarn(40, 0.0707),
  block_count: 27,
  leading_dense_block_count: 1,
  embedding_length: 2048,
  feed_forward_length: 10_944,
  context_length: 163_840,
  vocab_size: 102_400,
  'attention.head_count': 16,
  'attention.head_count_kv': 16,
  'attention.key_length': 192,
  'attention.value_length': 128,
  expert_count: 64,
  expert_used_count: 6,
  expert_shared_count: 2,
  expert_feed_forward_length: 1408,
  expert_weights_scale: 1,
  'attention.layer_norm_rms_epsilon': Math.fround(1e-6),
});

export const moonlight: Keys = withPrefix({
  ...common,
  ...absorbed,
  block_count: 27,
  leading_dense_block_count: 1,
  embedding_length: 2048,
  feed_forward_length: 11_264,
  context_length: 8192,
  vocab_size: 163_840,
  'attention.head_count': 16,
  expert_count: 64,
  expert_used_count: 6,
  expert_shared_count: 2,
  expert_feed_forward_length: 1408,
  expert_group_count: 1,
  expert_group_used_count: 1,
  expert_gating_func: 2,
  expert_weights_scale: Math.fround(2.446),
  expert_weights_norm: true,
  'rope.freq_base': 50_000,
  'attention.layer_norm_rms_epsilon': Math.fround(1e-5),
});

/** A model with this metadata; undefined removes a key. */
export function modelOf(keys: Keys, changes: Readonly<Record<string, GgufValue | undefined>> = {}): GgufModel {
  const metadata = new Map<string, GgufValue>([['general.architecture', 'deepseek2'], ...Object.entries(keys)]);
  for (const [key, value] of Object.entries(changes)) {
    const full = key.includes('general.') ? key : `deepseek2.${key}`;
    if (value === undefined) metadata.delete(full);
    else metadata.set(full, value);
  }
  return { files: [{ path: 'models/file.gguf', bytes: 0 }], version: 3, metadata, tensors: new Map() };
}

/** The same model with the tensors a converter writes for `config`, as BF16 (norms and biases included). */
export function withTensors(gguf: GgufModel, config: ModelConfig): GgufModel {
  const dialect = { joinedKvB: false, fusedGateUp: false, routerBias: config.gating === 'sigmoid' };
  const layers = Array.from({ length: config.layers }, (_, layer) => layerSpecs(config, layer, dialect)).flat();
  const tensors = [...globalSpecs(config), ...layers].map(({ name, shape }): [string, GgufTensor] => {
    const bytes = 2 * shape.reduce((product, dimension) => product * dimension, 1);
    return [name, { name, type: 'BF16', shape, file: 0, offset: 0, bytes }];
  });
  return { ...gguf, tensors: new Map(tensors) };
}
