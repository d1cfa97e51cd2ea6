/** A checkpoint's config.json, checked: the family's shape under the names Hugging Face gives it. */
import { perigeeError } from '../errors.ts';
import type { ModelShape } from '../model/tensors.ts';
import { isObject } from './safetensors.ts';

export interface HfYarn {
  readonly factor: number;
  readonly originalContext: number;
  /** null where the checkpoint does not say; the reader's defaults then apply. */
  readonly betaFast: number | null;
  readonly betaSlow: number | null;
  readonly mscale: number;
  readonly mscaleAllDim: number;
  readonly attentionFactor: number | null;
}

export interface HfConfig extends ModelShape {
  readonly modelType: string;
  readonly layers: number;
  readonly context: number;
  readonly expertsUsed: number;
  readonly sharedExperts: number;
  readonly groups: number;
  readonly groupsUsed: number;
  readonly gating: 'softmax' | 'sigmoid';
  readonly normalizeWeights: boolean;
  readonly weightScale: number;
  readonly rmsEps: number;
  readonly ropeBase: number;
  readonly yarn: HfYarn | null;
  readonly tiedEmbeddings: boolean;
  /** Rows and columns that share one scale in block-fp8 tensors. */
  readonly fp8Block: readonly [number, number];
  readonly bos: number | null;
  readonly eos: number | null;
  readonly pad: number | null;
}

type Json = Record<string, unknown>;

const families = {
  DeepseekV2ForCausalLM: 'deepseek_v2',
  DeepseekV3ForCausalLM: 'deepseek_v3',
  KimiK2ForCausalLM: 'kimi_k2',
  KimiK25ForConditionalGeneration: 'kimi_k25',
} as const;
const modelTypes: readonly string[] = Object.values(families);
const topkMethods = ['greedy', 'group_limited_greedy', 'noaux_tc'];

/** Reads the fields of one config.json (for Kimi K2.5, of its text_config). Missing or odd values are named. */
export function parseHfConfig(file: string, json: Json): HfConfig {
  const modelType = checkArchitecture(file, json);
  const text = isObject(json.text_config) ? json.text_config : json;
  const read = new FieldReader(file, text);
  checkVariants(file, text);
  const v2 = modelType === 'deepseek_v2';
  const topk = read.oneOf('topk_method', topkMethods, v2 ? 'greedy' : 'noaux_tc');
  const grouped = topk !== 'greedy';
  const quantization = isObject(text.quantization_config) ? text.quantization_config : json.quantization_config;
  const sharedExperts = read.size('n_shared_experts', 0);
  const expertWidth = read.size('moe_intermediate_size');
  return {
    modelType,
    layers: read.size('num_hidden_layers'),
    denseLayers: read.size('first_k_dense_replace', 0),
    hidden: read.size('hidden_size'),
    vocabulary: read.size('vocab_size'),
    context: read.size('max_position_embeddings'),
    heads: read.size('num_attention_heads'),
    qRank: read.size('q_lora_rank', 0),
    kvRank: read.size('kv_lora_rank'),
    nopeDim: read.size('qk_nope_head_dim'),
    ropeDim: read.size('qk_rope_head_dim'),
    valueDim: read.size('v_head_dim'),
    denseWidth: read.size('intermediate_size'),
    experts: read.size('n_routed_experts'),
    expertsUsed: read.size('num_experts_per_tok'),
    sharedExperts,
    expertWidth,
    sharedWidth: sharedExperts * expertWidth,
    groups: grouped ? read.size('n_group', 1) : 1,
    groupsUsed: grouped ? read.size('topk_group', 1) : 1,
    gating: read.oneOf('scoring_func', ['softmax', 'sigmoid'], v2 ? 'softmax' : 'sigmoid'),
    normalizeWeights: read.flag('norm_topk_prob', !v2),
    weightScale: read.number('routed_scaling_factor', 1),
    rmsEps: read.number('rms_norm_eps', 1e-6),
    ropeBase: read.number('rope_theta', ropeParameters(text).rope_theta ?? 10000),
    yarn: parseYarn(file, text),
    tiedEmbeddings: read.flag('tie_word_embeddings', false),
    fp8Block: parseFp8Block(file, quantization),
    bos: read.token('bos_token_id'),
    eos: read.token('eos_token_id'),
    pad: read.token('pad_token_id'),
  };
}

function checkArchitecture(file: string, json: Json): string {
  const named = Array.isArray(json.architectures) ? String(json.architectures[0]) : undefined;
  const modelType = typeof json.model_type === 'string' ? json.model_type : families[named as keyof typeof families];
  const known = named === undefined || named in families;
  if (modelType !== undefined && modelTypes.includes(modelType) && known) return modelType;
  throw perigeeError('CONVERT_UNSUPPORTED', {
    file,
    field: 'architecture',
    value: named ?? String(json.model_type),
    supported: Object.keys(families).join(', '),
  });
}

/** Variants of the family that exist on paper and would silently give wrong results here. */
function checkVariants(file: string, text: Json): void {
  const require = (field: string, supported: unknown) => {
    const value = text[field];
    if (value === undefined || value === null || value === supported) return;
    throw perigeeError('CONVERT_UNSUPPORTED', {
      file,
      field,
      value: JSON.stringify(value),
      supported: JSON.stringify(supported),
    });
  };
  require('hidden_act', 'silu');
  require('attention_bias', false);
  require('moe_layer_freq', 1);
  require('rope_interleave', true);
}

/** rope_scaling (and, from transformers 5 on, rope_parameters, which holds rope_theta as well). */
function ropeParameters(text: Json): Json {
  if (isObject(text.rope_scaling)) return text.rope_scaling;
  return isObject(text.rope_parameters) ? text.rope_parameters : {};
}

function parseYarn(file: string, text: Json): HfYarn | null {
  const rope = ropeParameters(text);
  const type = rope.rope_type ?? rope.type ?? 'default';
  if (type === 'default') return null;
  if (type !== 'yarn') {
    throw perigeeError('CONVERT_UNSUPPORTED', {
      file,
      field: 'rope_scaling.type',
      value: String(type),
      supported: 'yarn, default',
    });
  }
  const read = new FieldReader(file, rope, 'rope_scaling.');
  return {
    factor: read.number('factor'),
    originalContext: read.size(
      'original_max_position_embeddings',
      read.has('original_max_position_embeddings') ? undefined : Number(text.max_position_embeddings),
    ),
    betaFast: read.numberOrNull('beta_fast'),
    betaSlow: read.numberOrNull('beta_slow'),
    mscale: read.number('mscale', 0),
    mscaleAllDim: read.number('mscale_all_dim', 0),
    attentionFactor: read.numberOrNull('attention_factor'),
  };
}

function parseFp8Block(file: string, quantization: unknown): readonly [number, number] {
  if (!isObject(quantization) || quantization.quant_method !== 'fp8') return [128, 128];
  const block = quantization.weight_block_size ?? [128, 128];
  if (Array.isArray(block) && block.length === 2 && block.every((n) => Number.isSafeInteger(n) && n > 0)) {
    return block as unknown as readonly [number, number];
  }
  throw perigeeError('CONVERT_UNSUPPORTED', {
    file,
    field: 'quantization_config.weight_block_size',
    value: JSON.stringify(block),
    supported: 'two positive numbers',
  });
}

class FieldReader {
  readonly #file: string;
  readonly #json: Json;
  readonly #prefix: string;

  constructor(file: string, json: Json, prefix = '') {
    this.#file = file;
    this.#json = json;
    this.#prefix = prefix;
  }

  has(field: string): boolean {
    return this.#json[field] !== undefined && this.#json[field] !== null;
  }

  /** A count below 2^31; `fallback` when absent or null. */
  size(field: string, fallback?: number): number {
    const value = this.#value(field, fallback);
    if (Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 31) return value as number;
    throw this.#bad(field, value, 'a whole number from 0');
  }

  number(field: string, fallback?: unknown): number {
    const value = this.#value(field, fallback);
    if (typeof value === 'number' && Number.isFinite(value)) return value;
    throw this.#bad(field, value, 'a number');
  }

  numberOrNull(field: string): number | null {
    return this.has(field) ? this.number(field) : null;
  }

  flag(field: string, fallback: boolean): boolean {
    const value = this.#value(field, fallback);
    if (typeof value === 'boolean') return value;
    throw this.#bad(field, value, 'true or false');
  }

  oneOf<Choice extends string>(field: string, choices: readonly Choice[], fallback: Choice): Choice {
    const value = this.#value(field, fallback);
    if (choices.includes(value as Choice)) return value as Choice;
    throw this.#bad(field, value, choices.join(', '));
  }

  /** A token id; of a list, the first. */
  token(field: string): number | null {
    const value = this.#json[field];
    const first: unknown = Array.isArray(value) ? value[0] : value;
    if (first === undefined || first === null) return null;
    if (Number.isInteger(first)) return first as number;
    throw this.#bad(field, value, 'a token id');
  }

  #value(field: string, fallback: unknown): unknown {
    if (this.has(field)) return this.#json[field];
    if (fallback !== undefined) return fallback;
    throw perigeeError('CONVERT_CONFIG_FIELD', { file: this.#file, field: this.#prefix + field });
  }

  #bad(field: string, value: unknown, supported: string) {
    return perigeeError('CONVERT_UNSUPPORTED', {
      file: this.#file,
      field: this.#prefix + field,
      value: JSON.stringify(value),
      supported,
    });
  }
}
