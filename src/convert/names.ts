/** Which checkpoint tensors make which GGUF tensors. Shapes of GGUF tensors are in ggml order, of sources as stored. */
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
  readonly name: string;
  readonly shape: readonly number[];
  readonly sources: readonly SourceRows[];
  /** May be absent from the checkpoint: the GGUF then does without it too. */
  readonly optional: boolean;
}

/** Every tensor of the GGUF file, in file order. `prefix` stands before the language model's names in the checkpoint. */
export function planTensors(config: HfConfig, prefix: string): TargetTensor[] {
  const model = `${prefix}model.`;
  const targets = [
    matrix('token_embd.weight', `${model}embed_tokens.weight`, config.vocabulary, config.hidden),
    vector('output_norm.weight', `${model}norm.weight`, config.hidden),
  ];
  if (!config.tiedEmbeddings) {
    targets.push(matrix('output.weight', `${prefix}lm_head.weight`, config.vocabulary, config.hidden));
  }
  for (let layer = 0; layer < config.layers; layer += 1) {
    const blk = `blk.${layer}.`;
    const from = `${model}layers.${layer}.`;
    targets.push(...attention(config, blk, from));
    targets.push(vector(`${blk}ffn_norm.weight`, `${from}post_attention_layernorm.weight`, config.hidden));
    targets.push(...(layer < config.denseLayers ? dense(config, blk, from) : experts(config, blk, from)));
  }
  return targets;
}

function vector(name: string, tensor: string, length: number): TargetTensor {
  const source = { tensor, shape: [length], first: 0, count: 1, transpose: false };
  return { name, shape: [length], sources: [source], optional: false };
}

function matrix(name: string, tensor: string, rows: number, columns: number): TargetTensor {
  const source = { tensor, shape: [rows, columns], first: 0, count: rows, transpose: false };
  return { name, shape: [columns, rows], sources: [source], optional: false };
}

function attention(config: HfConfig, blk: string, from: string): TargetTensor[] {
  const { hidden, heads, qRank, kvRank, nopeDim, ropeDim, valueDim } = config;
  const self = `${from}self_attn.`;
  const queryRows = heads * (nopeDim + ropeDim);
  const query =
    qRank === 0
      ? [matrix(`${blk}attn_q.weight`, `${self}q_proj.weight`, queryRows, hidden)]
      : [
          matrix(`${blk}attn_q_a.weight`, `${self}q_a_proj.weight`, qRank, hidden),
          vector(`${blk}attn_q_a_norm.weight`, `${self}q_a_layernorm.weight`, qRank),
          matrix(`${blk}attn_q_b.weight`, `${self}q_b_proj.weight`, queryRows, qRank),
        ];
  return [
    vector(`${blk}attn_norm.weight`, `${from}input_layernorm.weight`, hidden),
    ...query,
    matrix(`${blk}attn_kv_a_mqa.weight`, `${self}kv_a_proj_with_mqa.weight`, kvRank + ropeDim, hidden),
    vector(`${blk}attn_kv_a_norm.weight`, `${self}kv_a_layernorm.weight`, kvRank),
    ...keyValueUp(config, blk, `${self}kv_b_proj.weight`),
    matrix(`${blk}attn_output.weight`, `${self}o_proj.weight`, hidden, heads * valueDim),
  ];
}

/**
 * kv_b_proj [heads * (nope + value), kvRank] holds per head the rows that make its keys, then those that make its values.
 * Absorbed attention multiplies queries by the key part from the other side, so that part is stored transposed:
 * attn_k_b [nope, kvRank, heads], attn_v_b [kvRank, value, heads].
 */
function keyValueUp(config: HfConfig, blk: string, tensor: string): TargetTensor[] {
  const { heads, kvRank, nopeDim, valueDim } = config;
  const perHead = nopeDim + valueDim;
  const rows = (offset: number, count: number, transpose: boolean): SourceRows[] =>
    Array.from({ length: heads }, (_, head) => ({
      tensor, shape: [heads * perHead, kvRank], first: head * perHead + offset, count, transpose,
    }));
  return [
    { name: `${blk}attn_k_b.weight`, shape: [nopeDim, kvRank, heads], sources: rows(0, nopeDim, true), optional: false },
    { name: `${blk}attn_v_b.weight`, shape: [kvRank, valueDim, heads], sources: rows(nopeDim, valueDim, false), optional: false },
  ];
}

function dense(config: HfConfig, blk: string, from: string): TargetTensor[] {
  const { hidden, denseWidth } = config;
  return [
    matrix(`${blk}ffn_gate.weight`, `${from}mlp.gate_proj.weight`, denseWidth, hidden),
    matrix(`${blk}ffn_up.weight`, `${from}mlp.up_proj.weight`, denseWidth, hidden),
    matrix(`${blk}ffn_down.weight`, `${from}mlp.down_proj.weight`, hidden, denseWidth),
  ];
}

function experts(config: HfConfig, blk: string, from: string): TargetTensor[] {
  const { hidden, expertWidth } = config;
  const mlp = `${from}mlp.`;
  const router = matrix(`${blk}ffn_gate_inp.weight`, `${mlp}gate.weight`, config.experts, hidden);
  const bias = vector(`${blk}exp_probs_b.bias`, `${mlp}gate.e_score_correction_bias`, config.experts);
  const stack = (kind: string, rows: number, columns: number): TargetTensor => ({
    name: `${blk}ffn_${kind}_exps.weight`,
    shape: [columns, rows, config.experts],
    sources: Array.from({ length: config.experts }, (_, expert) => ({
      tensor: `${mlp}experts.${expert}.${kind}_proj.weight`, shape: [rows, columns], first: 0, count: rows, transpose: false,
    })),
    optional: false,
  });
  const sharedWidth = config.sharedExperts * expertWidth;
  const shared = (kind: string, rows: number, columns: number) =>
    matrix(`${blk}ffn_${kind}_shexp.weight`, `${mlp}shared_experts.${kind}_proj.weight`, rows, columns);
  return [
    router,
    { ...bias, optional: true },
    stack('gate', expertWidth, hidden),
    stack('up', expertWidth, hidden),
    stack('down', hidden, expertWidth),
    ...(sharedWidth === 0
      ? []
      : [shared('gate', sharedWidth, hidden), shared('up', sharedWidth, hidden), shared('down', hidden, sharedWidth)]),
  ];
}
