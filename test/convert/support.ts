/** Small random checkpoints of the family, written as Hugging Face folders, and what their GGUF tensors must hold. */
import { mkdtempSync, openSync, readSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openGguf } from '../../src/gguf/open.ts';
import type { GgufModel } from '../../src/gguf/types.ts';

export interface StoredTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export type Tensors = Record<string, StoredTensor>;

export const temporary = mkdtempSync(join(tmpdir(), 'perigee-convert-'));
let folders = 0;

/** A new, empty folder. */
export async function newFolder(): Promise<string> {
  const folder = join(temporary, `checkpoint-${folders++}`);
  await mkdir(folder);
  return folder;
}

export function safetensors(tensors: Tensors): Uint8Array {
  let end = 0;
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  for (const [name, { dtype, shape, bytes }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [end, end + bytes.byteLength] };
    end += bytes.byteLength;
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, ...Object.values(tensors).map(({ bytes }) => bytes)]);
}

/** A folder with `config` and `tensors`, in one file or in `shards` with an index. */
export async function writeCheckpoint(config: object, tensors: Tensors, shards = 1): Promise<string> {
  const folder = await newFolder();
  await writeFile(join(folder, 'config.json'), JSON.stringify(config));
  if (shards === 1) {
    await writeFile(join(folder, 'model.safetensors'), safetensors(tensors));
    return folder;
  }
  const map: Record<string, string> = {};
  for (let shard = 0; shard < shards; shard++) {
    const file = `model-0000${shard + 1}-of-0000${shards}.safetensors`;
    const part = Object.fromEntries(Object.entries(tensors).filter((_, index) => index % shards === shard));
    for (const name of Object.keys(part)) map[name] = file;
    await writeFile(join(folder, file), safetensors(part));
  }
  await writeFile(join(folder, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }));
  return folder;
}

/** A K2-like config with every dimension odd enough to show a mix-up. */
export const smallConfig = {
  architectures: ['DeepseekV3ForCausalLM'],
  model_type: 'kimi_k2',
  hidden_act: 'silu',
  vocab_size: 40,
  hidden_size: 96,
  intermediate_size: 160,
  moe_intermediate_size: 64,
  num_hidden_layers: 2,
  first_k_dense_replace: 1,
  num_attention_heads: 3,
  q_lora_rank: 64,
  kv_lora_rank: 96,
  qk_nope_head_dim: 32,
  qk_rope_head_dim: 16,
  v_head_dim: 64,
  n_routed_experts: 4,
  num_experts_per_tok: 2,
  n_shared_experts: 1,
  n_group: 1,
  topk_group: 1,
  topk_method: 'noaux_tc',
  scoring_func: 'sigmoid',
  norm_topk_prob: true,
  routed_scaling_factor: 2.5,
  rms_norm_eps: 1e-6,
  rope_theta: 50000,
  max_position_embeddings: 256,
};

let state = 1;

/** Deterministic numbers, roughly normal, of the size weights have. */
export function randomFloats(count: number): Float32Array {
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  return Float32Array.from({ length: count }, () => 0.05 * (uniform() + uniform() + uniform() - 1.5));
}

export const elements = (shape: readonly number[]) => shape.reduce((product, size) => product * size, 1);

export function f32(shape: readonly number[], values = randomFloats(elements(shape))): StoredTensor {
  return { dtype: 'F32', shape, bytes: new Uint8Array(values.buffer) };
}

/** Float tensors for `smallConfig`, named with `prefix`. */
export function smallTensors(prefix = '', config = smallConfig): Tensors {
  const { hidden_size: hidden, num_attention_heads: heads, kv_lora_rank: kv, q_lora_rank: q } = config;
  const { qk_nope_head_dim: nope, qk_rope_head_dim: rope, v_head_dim: value } = config;
  const tensors: Tensors = {
    [`${prefix}model.embed_tokens.weight`]: f32([config.vocab_size, hidden]),
    [`${prefix}model.norm.weight`]: f32([hidden]),
    [`${prefix}lm_head.weight`]: f32([config.vocab_size, hidden]),
  };
  const mlp = (at: string, width: number) => {
    tensors[`${at}gate_proj.weight`] = f32([width, hidden]);
    tensors[`${at}up_proj.weight`] = f32([width, hidden]);
    tensors[`${at}down_proj.weight`] = f32([hidden, width]);
  };
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const at = `${prefix}model.layers.${layer}.`;
    tensors[`${at}input_layernorm.weight`] = f32([hidden]);
    tensors[`${at}post_attention_layernorm.weight`] = f32([hidden]);
    tensors[`${at}self_attn.q_a_proj.weight`] = f32([q, hidden]);
    tensors[`${at}self_attn.q_a_layernorm.weight`] = f32([q]);
    tensors[`${at}self_attn.q_b_proj.weight`] = f32([heads * (nope + rope), q]);
    tensors[`${at}self_attn.kv_a_proj_with_mqa.weight`] = f32([kv + rope, hidden]);
    tensors[`${at}self_attn.kv_a_layernorm.weight`] = f32([kv]);
    tensors[`${at}self_attn.kv_b_proj.weight`] = f32([heads * (nope + value), kv]);
    tensors[`${at}self_attn.o_proj.weight`] = f32([hidden, heads * value]);
    if (layer < config.first_k_dense_replace) {
      mlp(`${at}mlp.`, config.intermediate_size);
      continue;
    }
    tensors[`${at}mlp.gate.weight`] = f32([config.n_routed_experts, hidden]);
    tensors[`${at}mlp.gate.e_score_correction_bias`] = f32([config.n_routed_experts]);
    mlp(`${at}mlp.shared_experts.`, config.n_shared_experts * config.moe_intermediate_size);
    for (let e = 0; e < config.n_routed_experts; e++) mlp(`${at}mlp.experts.${e}.`, config.moe_intermediate_size);
  }
  return tensors;
}

/** The numbers of a float tensor of ours. */
export function valuesOf(tensors: Tensors, name: string): Float32Array {
  const tensor = tensors[name];
  if (tensor === undefined) throw new Error(`no ${name}`);
  return new Float32Array(Uint8Array.from(tensor.bytes).buffer);
}

function readAt(path: string, offset: number, bytes: number): ArrayBuffer {
  const buffer = new Uint8Array(bytes);
  readSync(openSync(path, 'r'), buffer, 0, bytes, offset);
  return buffer.buffer;
}

/** Opens a GGUF file with a function that reads a tensor's bytes. */
export async function openOutput(path: string): Promise<{ model: GgufModel; bytes: (name: string) => ArrayBuffer }> {
  const model = await openGguf(path);
  const bytes = (name: string) => {
    const tensor = model.tensors.get(name);
    if (tensor === undefined) throw new Error(`no ${name}`);
    return readAt(path, tensor.offset, tensor.bytes);
  };
  return { model, bytes };
}
