/** The smallest complete model of the family: 2 layers, 4 experts, 12 tokens, about 3 kB of header. */
import { elementCount } from '../../src/gguf/sizes.ts';
import type { GgufTensor, GgufValue } from '../../src/gguf/types.ts';
import { type GgufEntry, type GgufOutput, writeGguf } from '../../src/gguf/write.ts';

const key = (name: string) => `deepseek2.${name}`;

export const microEntries: readonly GgufEntry[] = [
  { key: 'general.architecture', type: 'string', value: 'deepseek2' },
  { key: 'general.name', type: 'string', value: 'micro' },
  { key: key('block_count'), type: 'u32', value: 2 },
  { key: key('leading_dense_block_count'), type: 'u32', value: 1 },
  { key: key('context_length'), type: 'u32', value: 128 },
  { key: key('embedding_length'), type: 'u32', value: 32 },
  { key: key('feed_forward_length'), type: 'u32', value: 64 },
  { key: key('vocab_size'), type: 'u32', value: 12 },
  { key: key('attention.head_count'), type: 'u32', value: 2 },
  { key: key('attention.q_lora_rank'), type: 'u32', value: 0 },
  { key: key('attention.kv_lora_rank'), type: 'u32', value: 16 },
  { key: key('attention.key_length_mla'), type: 'u32', value: 12 },
  { key: key('attention.value_length_mla'), type: 'u32', value: 8 },
  { key: key('attention.layer_norm_rms_epsilon'), type: 'f32', value: 1e-6 },
  { key: key('expert_count'), type: 'u32', value: 4 },
  { key: key('expert_used_count'), type: 'u32', value: 2 },
  { key: key('expert_shared_count'), type: 'u32', value: 1 },
  { key: key('expert_feed_forward_length'), type: 'u32', value: 32 },
  { key: key('expert_gating_func'), type: 'u32', value: 2 },
  { key: key('expert_weights_norm'), type: 'bool', value: true },
  { key: key('rope.dimension_count'), type: 'u32', value: 4 },
  { key: key('rope.scaling.type'), type: 'string', value: 'yarn' },
  { key: key('rope.scaling.factor'), type: 'f32', value: 4 },
  { key: key('rope.scaling.original_context_length'), type: 'u32', value: 32 },
  { key: key('rope.scaling.yarn_log_multiplier'), type: 'f32', value: 0.1 },
  { key: 'tokenizer.ggml.tokens', type: 'array', of: 'string', value: Array.from({ length: 12 }, (_, id) => `t${id}`) },
  { key: 'tokenizer.ggml.token_type', type: 'array', of: 'i32', value: Array.from({ length: 12 }, () => 1) },
];

const layer: readonly (readonly [string, readonly number[]])[] = [
  ['attn_norm.weight', [32]],
  ['attn_q.weight', [32, 24]],
  ['attn_kv_a_mqa.weight', [32, 20]],
  ['attn_kv_a_norm.weight', [16]],
  ['attn_k_b.weight', [8, 16, 2]],
  ['attn_v_b.weight', [16, 8, 2]],
  ['attn_output.weight', [16, 32]],
  ['ffn_norm.weight', [32]],
];
const dense: typeof layer = [
  ['ffn_gate.weight', [32, 64]],
  ['ffn_up.weight', [32, 64]],
  ['ffn_down.weight', [64, 32]],
];
const moe: typeof layer = [
  ['ffn_gate_inp.weight', [32, 4]],
  ['exp_probs_b.bias', [4]],
  ['ffn_gate_exps.weight', [32, 32, 4]],
  ['ffn_up_exps.weight', [32, 32, 4]],
  ['ffn_down_exps.weight', [32, 32, 4]],
  ['ffn_gate_shexp.weight', [32, 32]],
  ['ffn_up_shexp.weight', [32, 32]],
  ['ffn_down_shexp.weight', [32, 32]],
];

/** Name and shape of every tensor, written out rather than derived. */
export const microTensors: readonly (readonly [string, readonly number[]])[] = [
  ['token_embd.weight', [32, 12]],
  ['output_norm.weight', [32]],
  ['output.weight', [32, 12]],
  ...[...layer, ...dense].map(([name, shape]) => [`blk.0.${name}`, shape] as const),
  ...[...layer, ...moe].map(([name, shape]) => [`blk.1.${name}`, shape] as const),
];

/** The micro model in memory with some metadata replaced (undefined: removed) and some tensors replaced or removed. */
export function microModel(
  metadata: Readonly<Record<string, GgufValue | undefined>> = {},
  tensors: Readonly<Record<string, Partial<GgufTensor> | undefined>> = {},
) {
  const values = new Map<string, GgufValue | undefined>(microEntries.map((entry) => [entry.key, entry.value]));
  for (const [name, value] of Object.entries(metadata)) values.set(name, value);
  const table = new Map<string, GgufTensor>();
  for (const [name, shape] of microTensors) {
    table.set(name, { name, type: 'F32', shape, file: 0, offset: 0, bytes: elementCount(shape) * 4 });
  }
  for (const [name, change] of Object.entries(tensors)) {
    const base = { name, type: 'F32', shape: [1], file: 0, offset: 0, bytes: 4 } as const;
    if (change === undefined) table.delete(name);
    else table.set(name, { ...base, ...table.get(name), ...change });
  }
  const present = [...values].filter((pair): pair is [string, GgufValue] => pair[1] !== undefined);
  return { files: [{ path: 'models/micro.gguf', bytes: 0 }], version: 3, metadata: new Map(present), tensors: table };
}

/** Tensors for the writer, of zeros. */
export function outputTensors(list: typeof microTensors): GgufOutput['tensors'] {
  return list.map(([name, shape]) => {
    const bytes = elementCount(shape) * 4;
    return { name, type: 'F32' as const, shape, bytes, data: [new Uint8Array(bytes)] };
  });
}

export async function writeMicro(path: string): Promise<void> {
  await writeGguf(path, { metadata: microEntries, tensors: outputTensors(microTensors) });
}
