/**
 * Which checkpoint tensors make which GGUF tensors. Names and shapes of the GGUF side are src/model's (ggml order); shapes of
 * sources are as stored, outermost first.
 */
import { globalSpecs, layerSpecs, type Slot, type SlotSpec } from '../model/tensors.ts';
import type { HfConfig } from './hf-config.ts';

/** Some rows of one source matrix, in order; `transpose` turns the block [rows, columns] over before it is stored. */
export interface SourceRows {
  readonly tensor: string;
  readonly shape: readonly number[];
  readonly first: number;
  readonly count: number;
  readonly transpose: boolean;
}

export interface TargetTensor {
  readonly spec: SlotSpec;
  /** 0 outside the layers. */
  readonly layer: number;
  readonly sources: readonly SourceRows[];
}

/** Tensors that are taken over whole, by slot: the name behind `model.layers.N.`. */
const layerNames: Partial<Record<Slot, string>> = {
  attn_norm: 'input_layernorm.weight',
  attn_q: 'self_attn.q_proj.weight',
  attn_q_a: 'self_attn.q_a_proj.weight',
  attn_q_a_norm: 'self_attn.q_a_layernorm.weight',
  attn_q_b: 'self_attn.q_b_proj.weight',
  attn_kv_a: 'self_attn.kv_a_proj_with_mqa.weight',
  attn_kv_a_norm: 'self_attn.kv_a_layernorm.weight',
  attn_output: 'self_attn.o_proj.weight',
  ffn_norm: 'post_attention_layernorm.weight',
  ffn_gate: 'mlp.gate_proj.weight',
  ffn_up: 'mlp.up_proj.weight',
  ffn_down: 'mlp.down_proj.weight',
  ffn_gate_inp: 'mlp.gate.weight',
  exp_probs_b: 'mlp.gate.e_score_correction_bias',
  ffn_gate_shexp: 'mlp.shared_experts.gate_proj.weight',
  ffn_up_shexp: 'mlp.shared_experts.up_proj.weight',
  ffn_down_shexp: 'mlp.shared_experts.down_proj.weight',
};

const globalNames: Partial<Record<Slot, string>> = {
  token_embd: 'model.embed_tokens.weight',
  output_norm: 'model.norm.weight',
  output: 'lm_head.weight',
};

/**
 * Every tensor of the GGUF file, in file order. `prefix` stands before the language model's names in the checkpoint; `has`
 * says whether the checkpoint has a tensor, where that decides the layout.
 */
export function planTensors(config: HfConfig, prefix: string, has: (tensor: string) => boolean): TargetTensor[] {
  const targets: TargetTensor[] = globalSpecs(config)
    .filter(({ slot }) => slot !== 'output' || !config.tiedEmbeddings)
    .map((spec) => ({ spec, layer: 0, sources: [whole(`${prefix}${globalNames[spec.slot]}`, spec)] }));
  for (let layer = 0; layer < config.layers; layer += 1) {
    const from = `${prefix}model.layers.${layer}.`;
    const routerBias = has(`${from}${layerNames.exp_probs_b}`);
    for (const spec of layerSpecs(config, layer, { joinedKvB: false, fusedGateUp: false, routerBias })) {
      targets.push({ spec, layer, sources: layerSources(config, spec, from, has) });
    }
  }
  return targets;
}

function layerSources(config: HfConfig, spec: SlotSpec, from: string, has: (tensor: string) => boolean): SourceRows[] {
  const { slot } = spec;
  if (slot === 'attn_k_b' || slot === 'attn_v_b') return keyValueUp(config, slot, `${from}self_attn.kv_b_proj.weight`);
  const kind = /^ffn_(gate|up|down)_exps$/.exec(slot)?.[1];
  if (kind === undefined) return [whole(`${from}${layerNames[slot]}`, spec)];
  const experts = `${from}mlp.experts.`;
  return has(`${experts}down_proj`)
    ? stackedExperts(config, kind, spec, experts)
    : singleExperts(config, kind, spec, experts);
}

function whole(tensor: string, spec: SlotSpec): SourceRows {
  return { tensor, shape: spec.shape.toReversed(), first: 0, count: spec.shape[1] ?? 1, transpose: false };
}

/**
 * kv_b_proj [heads * (nope + value), kvRank] holds per head the rows that make its keys, then those that make its values.
 * Absorbed attention multiplies queries by the key part from the other side, so attn_k_b has that part transposed.
 */
function keyValueUp(config: HfConfig, slot: 'attn_k_b' | 'attn_v_b', tensor: string): SourceRows[] {
  const { heads, kvRank, nopeDim, valueDim } = config;
  const perHead = nopeDim + valueDim;
  const shape = [heads * perHead, kvRank];
  return Array.from({ length: heads }, (_, head) =>
    slot === 'attn_k_b'
      ? { tensor, shape, first: head * perHead, count: nopeDim, transpose: true }
      : { tensor, shape, first: head * perHead + nopeDim, count: valueDim, transpose: false },
  );
}

function singleExperts(config: HfConfig, kind: string, spec: SlotSpec, experts: string): SourceRows[] {
  const [columns, rows] = spec.shape as [number, number];
  return Array.from({ length: config.experts }, (_, expert) => ({
    tensor: `${experts}${expert}.${kind}_proj.weight`,
    shape: [rows, columns],
    first: 0,
    count: rows,
    transpose: false,
  }));
}

/** Newer transformers may store all experts in one tensor, gate and up joined: [experts, 2 * width, hidden], gate first. */
function stackedExperts(config: HfConfig, kind: string, spec: SlotSpec, experts: string): SourceRows[] {
  const [columns, rows] = spec.shape as [number, number];
  const joined = kind === 'down' ? 1 : 2;
  const tensor = `${experts}${kind === 'down' ? 'down_proj' : 'gate_up_proj'}`;
  const shape = [config.experts, joined * rows, columns];
  const offset = kind === 'up' ? rows : 0;
  return Array.from({ length: config.experts }, (_, expert) => ({
    tensor,
    shape,
    first: expert * joined * rows + offset,
    count: rows,
    transpose: false,
  }));
}
