/** The engine gets exactly the tensors its config implies, or a sentence naming the first that is wrong. */
import { describe, expect, it } from 'vitest';
import type { GgufTensor } from '../../src/gguf/types.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { modelTensors } from '../../src/model/tensors.ts';
import { errorOf } from '../gguf/raw.ts';
import { kimiK2, modelOf, withTensors } from './known-models.ts';
import { microModel, microTensors } from './micro.ts';

type Changes = Readonly<Record<string, Partial<GgufTensor> | undefined>>;

function tensorsOf(changes: Changes = {}, metadata = {}) {
  const gguf = microModel(metadata, changes);
  return modelTensors(gguf, modelConfig(gguf));
}

async function refusal(changes: Changes, metadata = {}): Promise<string> {
  const error = await errorOf(() => tensorsOf(changes, metadata));
  return `${error.code}: ${error.message}`;
}

it('finds every tensor of a complete model', () => {
  const { layers, ...globals } = tensorsOf();
  const names = [globals, ...layers].flatMap((slots) => Object.values(slots).map((tensor) => tensor.name));
  expect(names.sort()).toEqual(microTensors.map(([name]) => name).sort());
  expect(layers[1]?.attn_kv_a.name).toBe('blk.1.attn_kv_a_mqa.weight');
  expect(layers[1]?.exp_probs_b?.name).toBe('blk.1.exp_probs_b.bias');
});

it('finds the 1096 tensors of Kimi K2', () => {
  const config = modelConfig(modelOf(kimiK2));
  const gguf = withTensors(modelOf(kimiK2), config);
  expect(gguf.tensors.size).toBe(1096);
  const { layers } = modelTensors(gguf, config);
  expect(layers[60]?.attn_k_b?.shape).toEqual([128, 512, 64]);
  expect(layers[60]?.attn_v_b?.shape).toEqual([512, 128, 64]);
  expect(layers[60]?.ffn_down_exps?.shape).toEqual([2048, 7168, 384]);
});

describe('dialects', () => {
  it('ties the head to the embedding when there is no output', () => {
    expect(tensorsOf({ 'output.weight': undefined }).output).toBeUndefined();
  });

  const joined = { 'blk.0.attn_kv_b.weight': { shape: [16, 32] }, 'blk.1.attn_kv_b.weight': { shape: [16, 32] } };
  const noPair = Object.fromEntries(
    ['blk.0.attn_k_b', 'blk.0.attn_v_b', 'blk.1.attn_k_b', 'blk.1.attn_v_b'].map((name) => [
      `${name}.weight`,
      undefined,
    ]),
  );

  it('takes a joined attn_kv_b', () => {
    const { layers } = tensorsOf({ ...joined, ...noPair });
    expect(layers[0]?.attn_kv_b?.shape).toEqual([16, 32]);
    expect(layers[0]?.attn_k_b).toBeUndefined();
  });

  it('prefers the pair where a file has all three', () => {
    const { layers } = tensorsOf(joined);
    expect(layers[0]?.attn_kv_b).toBeUndefined();
    expect(layers[0]?.attn_k_b).toBeDefined();
  });

  it('takes attn_k_b spelled in two dimensions', () => {
    expect(tensorsOf({ 'blk.0.attn_k_b.weight': { shape: [8, 32] } }).layers[0]?.attn_k_b?.shape).toEqual([8, 16, 2]);
  });

  it('takes gate and up in one tensor', () => {
    const fused = {
      'blk.1.ffn_gate_up_exps.weight': { shape: [32, 64, 4] },
      'blk.1.ffn_gate_exps.weight': undefined,
      'blk.1.ffn_up_exps.weight': undefined,
    };
    expect(tensorsOf(fused).layers[1]?.ffn_gate_up_exps?.shape).toEqual([32, 64, 4]);
  });

  it('does without a selection bias', () => {
    expect(tensorsOf({ 'blk.1.exp_probs_b.bias': undefined }).layers[1]?.exp_probs_b).toBeUndefined();
  });

  it('ignores multi-token prediction blocks', () => {
    expect(tensorsOf({ 'blk.2.nextn.eh_proj.weight': { shape: [64, 32] } }).layers).toHaveLength(2);
  });

  it.each(['F16', 'BF16'] as const)('takes norms in %s', (type) => {
    expect(tensorsOf({ 'output_norm.weight': { type } }).output_norm.type).toBe(type);
  });
});

describe('disagreement with the metadata', () => {
  it.each([
    [
      'fewer experts than stated',
      { 'blk.1.ffn_up_exps.weight': { shape: [32, 32, 2] } },
      /blk\.1\.ffn_up_exps\.weight is \[32, 32, 2\], expected \[32, 32, 4\]/,
    ],
    [
      'a transposed attn_k_b',
      { 'blk.0.attn_k_b.weight': { shape: [16, 8, 2] } },
      /attn_k_b\.weight is \[16, 8, 2\], expected \[8, 16, 2\]/,
    ],
    [
      'an embedding of another vocabulary',
      { 'token_embd.weight': { shape: [32, 16] } },
      /token_embd\.weight is \[32, 16\], expected \[32, 12\]/,
    ],
    [
      'a norm of one more',
      { 'blk.0.attn_norm.weight': { shape: [33] } },
      /attn_norm\.weight is \[33\], expected \[32\]/,
    ],
    ['one dimension too many', { 'output_norm.weight': { shape: [32, 2] } }, /output_norm\.weight is \[32, 2\]/],
    ['a matrix flattened to a row', { 'blk.0.ffn_up.weight': { shape: [2048] } }, /ffn_up\.weight is \[2048\]/],
    [
      'a missing tensor',
      { 'blk.1.ffn_down_shexp.weight': undefined },
      /ffn_down_shexp\.weight is missing, expected \[32, 32\]/,
    ],
    [
      'a quantized norm',
      { 'output_norm.weight': { type: 'Q8_0' as const } },
      /output_norm\.weight is stored as Q8_0, expected F32, F16, BF16/,
    ],
  ])('%s', async (_, changes, sentence) => {
    expect(await refusal(changes)).toMatch(new RegExp(`^MODEL_BAD_TENSOR: .*${sentence.source}`));
  });

  it('a token list of another length than the vocabulary', async () => {
    expect(await refusal({}, { 'tokenizer.ggml.tokens': ['a', 'b'] })).toMatch(
      /^MODEL_BAD_CONFIG: .*tokens is a list of 2, expected one entry for each .* 12 ids/,
    );
  });

  it('a tensor that would be silently left out', async () => {
    expect(await refusal({ 'blk.0.attn_q.bias': { shape: [24] } })).toMatch(
      /^MODEL_UNSUPPORTED: .*'blk\.0\.attn_q\.bias'/,
    );
  });
});
