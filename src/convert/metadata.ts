/** GGUF metadata of a converted model: the keys llama.cpp's converter writes for architecture deepseek2. */
import type { GgufEntry } from '../gguf/write.ts';
import type { HfConfig, HfYarn } from './hf-config.ts';

/** Entries for general.* and deepseek2.*; `fileType` is llama.cpp's number for the mixture of tensor types. */
export function modelMetadata(config: HfConfig, name: string, fileType: number): GgufEntry[] {
  return [
    { key: 'general.architecture', type: 'string', value: 'deepseek2' },
    { key: 'general.type', type: 'string', value: 'model' },
    { key: 'general.name', type: 'string', value: name },
    { key: 'general.file_type', type: 'u32', value: fileType },
    { key: 'general.quantization_version', type: 'u32', value: 2 },
    ...shapeEntries(config),
    ...attentionEntries(config),
    ...expertEntries(config),
    ...(config.yarn === null ? [] : yarnEntries(config.yarn)),
  ];
}

const u32 = (key: string, value: number): GgufEntry => ({ key: `deepseek2.${key}`, type: 'u32', value });
const f32 = (key: string, value: number): GgufEntry => ({ key: `deepseek2.${key}`, type: 'f32', value });

function shapeEntries(config: HfConfig): GgufEntry[] {
  return [
    u32('block_count', config.layers),
    u32('context_length', config.context),
    u32('embedding_length', config.hidden),
    u32('feed_forward_length', config.denseWidth),
    u32('leading_dense_block_count', config.denseLayers),
    u32('vocab_size', config.vocabulary),
  ];
}

function attentionEntries(config: HfConfig): GgufEntry[] {
  return [
    u32('attention.head_count', config.heads),
    // Absorbed attention has one key-value head: the latent with the shared rope part. key_length and value_length are its
    // sizes; the *_mla keys are those of the heads as trained.
    u32('attention.head_count_kv', 1),
    u32('attention.key_length', config.kvRank + config.ropeDim),
    u32('attention.value_length', config.kvRank),
    u32('attention.key_length_mla', config.nopeDim + config.ropeDim),
    u32('attention.value_length_mla', config.valueDim),
    // llama.cpp demands the key unless the model has 26 or 27 layers, and takes 0 for "no low-rank query".
    u32('attention.q_lora_rank', config.qRank),
    u32('attention.kv_lora_rank', config.kvRank),
    f32('attention.layer_norm_rms_epsilon', config.rmsEps),
    u32('rope.dimension_count', config.ropeDim),
    f32('rope.freq_base', config.ropeBase),
  ];
}

function expertEntries(config: HfConfig): GgufEntry[] {
  return [
    u32('expert_count', config.experts),
    u32('expert_used_count', config.expertsUsed),
    u32('expert_shared_count', config.sharedExperts),
    u32('expert_feed_forward_length', config.expertWidth),
    u32('expert_group_count', config.groups),
    u32('expert_group_used_count', config.groupsUsed),
    u32('expert_gating_func', config.gating === 'softmax' ? 1 : 2),
    f32('expert_weights_scale', config.weightScale),
    { key: 'deepseek2.expert_weights_norm', type: 'bool', value: config.normalizeWeights },
  ];
}

function yarnEntries(yarn: HfYarn): GgufEntry[] {
  const magnitude = yarnMagnitude(yarn);
  return [
    { key: 'deepseek2.rope.scaling.type', type: 'string', value: 'yarn' },
    f32('rope.scaling.factor', yarn.factor),
    u32('rope.scaling.original_context_length', yarn.originalContext),
    // A tenth of mscale_all_dim, a quirk that every reader of this architecture expects.
    f32('rope.scaling.yarn_log_multiplier', 0.1 * yarn.mscaleAllDim),
    ...(yarn.betaFast === null ? [] : [f32('rope.scaling.yarn_beta_fast', yarn.betaFast)]),
    ...(yarn.betaSlow === null ? [] : [f32('rope.scaling.yarn_beta_slow', yarn.betaSlow)]),
    ...(magnitude === 1 ? [] : [f32('rope.scaling.yarn_attn_factor', magnitude)]),
  ];
}

/** What the model multiplies cos and sin by: 1 whenever mscale equals mscale_all_dim, as in every published checkpoint. */
function yarnMagnitude(yarn: HfYarn): number {
  if (yarn.attentionFactor !== null) return yarn.attentionFactor;
  const scale = (mscale: number) => (yarn.factor <= 1 ? 1 : 0.1 * mscale * Math.log(yarn.factor) + 1);
  if (yarn.mscale !== 0 && yarn.mscaleAllDim !== 0) return scale(yarn.mscale) / scale(yarn.mscaleAllDim);
  return scale(1);
}
