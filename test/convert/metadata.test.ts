import { existsSync } from 'node:fs';
import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { convertCheckpoint } from '../../src/convert/convert.ts';
import { parseHfConfig } from '../../src/convert/hf-config.ts';
import { modelMetadata } from '../../src/convert/metadata.ts';
import { planTensors } from '../../src/convert/names.ts';
import { type ConvertType, chooseTensorType } from '../../src/convert/tensor-types.ts';
import { rebuildMerges, tokenizerMetadata } from '../../src/convert/tokenizer-metadata.ts';
import type { GgufModel } from '../../src/gguf/types.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { openOutput, smallConfig, smallTensors, temporary, writeCheckpoint } from './support.ts';

/** Kimi-K2-Instruct's published numbers. */
const k2 = {
  architectures: ['DeepseekV3ForCausalLM'],
  model_type: 'kimi_k2',
  vocab_size: 163840,
  hidden_size: 7168,
  intermediate_size: 18432,
  moe_intermediate_size: 2048,
  num_hidden_layers: 61,
  first_k_dense_replace: 1,
  moe_layer_freq: 1,
  num_attention_heads: 64,
  q_lora_rank: 1536,
  kv_lora_rank: 512,
  qk_nope_head_dim: 128,
  qk_rope_head_dim: 64,
  v_head_dim: 128,
  n_routed_experts: 384,
  num_experts_per_tok: 8,
  n_shared_experts: 1,
  n_group: 1,
  topk_group: 1,
  topk_method: 'noaux_tc',
  scoring_func: 'sigmoid',
  norm_topk_prob: true,
  routed_scaling_factor: 2.827,
  rms_norm_eps: 1e-6,
  rope_theta: 50000,
  max_position_embeddings: 131072,
  rope_scaling: {
    type: 'yarn',
    factor: 32,
    original_max_position_embeddings: 4096,
    beta_fast: 1,
    beta_slow: 1,
    mscale: 1,
    mscale_all_dim: 1,
  },
};

const config = (json: object) => parseHfConfig('config.json', json as Record<string, unknown>);
const metadata = (json: object) =>
  new Map(
    modelMetadata(config(json), 'Test', 15).map(({ key, type, value }) => [
      key.replace('deepseek2.', ''),
      { type, value },
    ]),
  );

describe('metadata of Kimi K2', () => {
  const entries = metadata(k2);

  // What llama.cpp's converter writes for it.
  it.each([
    ['general.architecture', 'string', 'deepseek2'],
    ['general.file_type', 'u32', 15],
    ['general.quantization_version', 'u32', 2],
    ['block_count', 'u32', 61],
    ['context_length', 'u32', 131072],
    ['embedding_length', 'u32', 7168],
    ['feed_forward_length', 'u32', 18432],
    ['leading_dense_block_count', 'u32', 1],
    ['vocab_size', 'u32', 163840],
    ['attention.head_count', 'u32', 64],
    ['attention.head_count_kv', 'u32', 1],
    ['attention.q_lora_rank', 'u32', 1536],
    ['attention.kv_lora_rank', 'u32', 512],
    ['attention.key_length', 'u32', 576],
    ['attention.value_length', 'u32', 512],
    ['attention.key_length_mla', 'u32', 192],
    ['attention.value_length_mla', 'u32', 128],
    ['attention.layer_norm_rms_epsilon', 'f32', 1e-6],
    ['rope.dimension_count', 'u32', 64],
    ['rope.freq_base', 'f32', 50000],
    ['rope.scaling.type', 'string', 'yarn'],
    ['rope.scaling.factor', 'f32', 32],
    ['rope.scaling.original_context_length', 'u32', 4096],
    ['rope.scaling.yarn_log_multiplier', 'f32', 0.1],
    ['rope.scaling.yarn_beta_fast', 'f32', 1],
    ['rope.scaling.yarn_beta_slow', 'f32', 1],
    ['expert_count', 'u32', 384],
    ['expert_used_count', 'u32', 8],
    ['expert_shared_count', 'u32', 1],
    ['expert_feed_forward_length', 'u32', 2048],
    ['expert_gating_func', 'u32', 2],
    ['expert_weights_scale', 'f32', 2.827],
    ['expert_weights_norm', 'bool', true],
  ])('has %s', (key, type, value) => {
    expect(entries.get(key)).toEqual({ type, value });
  });

  it('says nothing of a stretch that mscale and mscale_all_dim cancel', () => {
    expect(entries.has('rope.scaling.yarn_attn_factor')).toBe(false);
  });
});

describe('metadata of relatives', () => {
  it('take softmax, no norm and no groups for DeepSeek V2 where its config is silent', () => {
    const { scoring_func: _, topk_method: __, norm_topk_prob: ___, ...silent } = k2;
    const v2 = metadata({ ...silent, architectures: ['DeepseekV2ForCausalLM'], model_type: 'deepseek_v2', n_group: 8 });
    expect(v2.get('expert_gating_func')?.value).toBe(1);
    expect(v2.get('expert_weights_norm')?.value).toBe(false);
    expect(v2.get('expert_group_count')?.value).toBe(1);
  });

  it('take sigmoid and norm for DeepSeek V3 where its config is silent, and its groups', () => {
    const { scoring_func: _, topk_method: __, norm_topk_prob: ___, ...silent } = k2;
    const v3 = metadata({ ...silent, model_type: 'deepseek_v3', n_group: 8, topk_group: 4 });
    expect(v3.get('expert_gating_func')?.value).toBe(2);
    expect(v3.get('expert_weights_norm')?.value).toBe(true);
    expect(v3.get('expert_group_count')?.value).toBe(8);
    expect(v3.get('expert_group_used_count')?.value).toBe(4);
  });

  it('read rope_parameters, as newer transformers write them', () => {
    const { rope_scaling: scaling, rope_theta: theta, ...rest } = k2;
    const newer = metadata({
      ...rest,
      rope_parameters: { ...scaling, type: undefined, rope_type: 'yarn', rope_theta: theta },
    });
    expect(newer).toEqual(metadata(k2));
    const plain = metadata({ ...rest, rope_parameters: { rope_type: 'default', rope_theta: 1234 } });
    expect(plain.get('rope.freq_base')?.value).toBe(1234);
    expect(plain.has('rope.scaling.type')).toBe(false);
  });

  it('leave unsaid betas unsaid', () => {
    const { beta_fast: _, beta_slow: __, ...scaling } = k2.rope_scaling;
    const silent = metadata({ ...k2, rope_scaling: scaling });
    expect(silent.has('rope.scaling.yarn_beta_fast')).toBe(false);
    expect(silent.has('rope.scaling.yarn_beta_slow')).toBe(false);
  });

  // m(s) = 0.1 s ln(factor) + 1; transformers multiplies cos and sin by m(mscale) / m(mscale_all_dim), the scores by m(mscale_all_dim)^2.
  it.each([
    ['equal', { mscale: 0.707, mscale_all_dim: 0.707 }, 0.707, 1],
    ['different', { mscale: 1, mscale_all_dim: 0.5 }, 0.5, (0.1 * Math.log(32) + 1) / (0.05 * Math.log(32) + 1)],
    ['absent', { mscale: undefined, mscale_all_dim: undefined }, 0, 0.1 * Math.log(32) + 1],
  ])('carry both YaRN temperatures to the reader: mscales %s', async (_, scales, allDim, magnitude) => {
    const yarn = { ...k2.rope_scaling, ...scales };
    const folder = await writeCheckpoint({ ...smallConfig, rope_scaling: yarn }, smallTensors());
    const path = join(temporary, 'yarn.gguf');
    await convertCheckpoint(folder, path, { type: 'f16' });
    const read = modelConfig((await openOutput(path)).model).yarn;
    expect(read?.attentionFactor).toBeCloseTo(1 + 0.1 * allDim * Math.log(32), 6);
    expect(read?.magnitude).toBeCloseTo(magnitude, 6);
  });
});

describe('types of Kimi K2 files', () => {
  const plan = planTensors(config(k2), '', (name) => name.endsWith('e_score_correction_bias'));
  const types = (type: ConvertType, head?: ConvertType) =>
    new Map(
      plan.map((target) => [target.spec.name, chooseTensorType({ type, ...(head && { head }) }, target, config(k2))]),
    );

  it('are those of 1096 tensors, as in the published files', () => {
    expect(plan.length).toBe(1096);
  });

  it('are for q4_k_m what llama.cpp chooses', () => {
    const chosen = types('q4_k_m');
    expect(chosen.get('token_embd.weight')).toBe('Q4_K');
    expect(chosen.get('output.weight')).toBe('Q6_K');
    expect(chosen.get('blk.30.attn_k_b.weight')).toBe('Q5_0');
    expect(chosen.get('blk.30.attn_v_b.weight')).toBe('Q4_K');
    expect(chosen.get('blk.30.attn_output.weight')).toBe('Q4_K');
    expect(chosen.get('blk.30.ffn_gate_inp.weight')).toBe('F32');
    expect(chosen.get('blk.30.exp_probs_b.bias')).toBe('F32');
    expect(chosen.get('blk.30.attn_kv_a_norm.weight')).toBe('F32');
    // More bits for 0..6, every third from 9, and 53..60.
    const generous = Array.from({ length: 60 }, (_, i) => i + 1).filter(
      (layer) => chosen.get(`blk.${layer}.ffn_down_exps.weight`) === 'Q6_K',
    );
    const expected = Array.from({ length: 60 }, (_, i) => i + 1).filter(
      (layer) => layer <= 6 || layer >= 53 || (layer >= 9 && layer % 3 === 0),
    );
    expect(generous).toEqual(expected);
    expect(chosen.get('blk.30.ffn_up_exps.weight')).toBe('Q4_K');
  });

  it.each([
    ['f32', 'F32', 'F32', 'F32'],
    ['f16', 'F16', 'F16', 'F16'],
    ['bf16', 'BF16', 'BF16', 'BF16'],
    ['q8_0', 'Q8_0', 'Q8_0', 'Q8_0'],
    ['q4_0', 'Q6_K', 'Q4_0', 'Q4_0'],
    ['q5_k_m', 'Q6_K', 'Q5_1', 'Q5_K'],
    ['q6_k', 'Q6_K', 'Q8_0', 'Q6_K'],
  ] as const)('are for %s: head %s, narrow rows %s, others %s', (type, head, narrow, other) => {
    const chosen = types(type);
    expect(chosen.get('output.weight')).toBe(head);
    expect(chosen.get('blk.8.attn_k_b.weight')).toBe(narrow);
    expect(chosen.get('blk.8.ffn_down_exps.weight')).toBe(other);
    expect(chosen.get('blk.8.ffn_norm.weight')).toBe('F32');
  });

  it('change for the head alone when asked', () => {
    const chosen = types('q8_0', 'bf16');
    expect([...chosen].filter(([, type]) => type === 'BF16')).toEqual([['output.weight', 'BF16']]);
  });
});

describe('the tokenizer of a converted checkpoint', () => {
  const folder = fileURLToPath(new URL('../fixtures/moonlight', import.meta.url));
  let model: GgufModel;
  beforeAll(async () => {
    const path = join(temporary, 'moonlight.gguf');
    await convertCheckpoint(folder, path, { type: 'f16' });
    ({ model } = await openOutput(path));
  });
  const list = (key: string) => model.metadata.get(`tokenizer.ggml.${key}`) as readonly (string | number)[];

  it('names its kind as llama.cpp does', () => {
    expect(model.metadata.get('tokenizer.ggml.model')).toBe('gpt2');
    expect(model.metadata.get('tokenizer.ggml.pre')).toBe('kimi-k2');
  });

  it('spells bytes as GPT-2 does and control tokens as themselves, the nameless by number', () => {
    const tokens = list('tokens');
    expect(tokens.length).toBe(4352);
    expect(tokens).toContain('Ġthe');
    expect(tokens.indexOf('Ċ')).toBeGreaterThanOrEqual(0);
    expect(tokens.slice(4096, 4102)).toEqual([
      '[BOS]',
      '[EOS]',
      '<|im_end|>',
      '<|im_user|>',
      '<|im_assistant|>',
      '<|reserved_token_4101|>',
    ]);
    expect(tokens[4351]).toBe('[PAD]');
    expect(new Set(tokens).size).toBe(4352);
  });

  it('marks all 256 control slots, tool tokens included, and nothing else', () => {
    const types = list('token_type');
    expect(types.every((type, id) => type === (id < 4096 ? 1 : 3))).toBe(true);
  });

  it('has one merge per token of several bytes, which joins to that token', () => {
    const merges = list('merges') as readonly string[];
    expect(merges.length).toBe(4096 - 256);
    expect(merges.map((merge) => merge.replace(' ', ''))).toEqual(list('tokens').slice(256, 4096));
  });

  it('carries the special ids and the chat template', async () => {
    const id = (key: string) => model.metadata.get(`tokenizer.ggml.${key}_token_id`);
    expect([id('bos'), id('eos'), id('unknown'), id('padding')]).toEqual([4096, 4098, 4350, 4351]);
    const settings = JSON.parse(await readFile(join(folder, 'tokenizer_config.json'), 'utf8'));
    expect(model.metadata.get('tokenizer.chat_template')).toBe(settings.chat_template);
  });

  it('takes chat_template.jinja where there is one', async () => {
    const copy = join(temporary, 'with-template');
    await cp(folder, copy, { recursive: true });
    await writeFile(join(copy, 'chat_template.jinja'), '{{ messages }}');
    await convertCheckpoint(copy, join(temporary, 'templated.gguf'), { type: 'f16' });
    const { model: templated } = await openOutput(join(temporary, 'templated.gguf'));
    expect(templated.metadata.get('tokenizer.chat_template')).toBe('{{ messages }}');
  });

  it('may be absent, which is said', async () => {
    const path = join(temporary, 'no-tokenizer.gguf');
    const result = await convertCheckpoint(await writeCheckpoint(smallConfig, smallTensors()), path, { type: 'q8_0' });
    expect(result.notes).toContainEqual(expect.stringContaining('no tokenizer'));
    expect((await openOutput(path)).model.metadata.get('tokenizer.ggml.model')).toBe('none');
  });
});

const kimi = fileURLToPath(new URL('../../../shared/kimi-tokenizer', import.meta.url));

describe.skipIf(!existsSync(kimi))("Kimi's own vocabulary (skipped where ../shared/kimi-tokenizer is absent)", () => {
  it('gets the merges that published GGUF files have', async () => {
    const { entries } = await tokenizerMetadata(kimi, { ...config(k2), bos: 163584, eos: 163586, pad: 163839 });
    const list = (key: string) =>
      entries.find((entry) => entry.key === `tokenizer.ggml.${key}`)?.value as readonly string[];
    const merges = list('merges');
    expect(merges.length).toBe(163328);
    expect(merges.slice(0, 4)).toEqual(['Ġ Ġ', 'ĠĠ ĠĠ', 'Ġ t', 'i n']);
    // Each merge makes the token of its place; the space between the halves is the first after the first character.
    const joined = merges.map(
      (merge) => merge.slice(0, merge.indexOf(' ', 1)) + merge.slice(merge.indexOf(' ', 1) + 1),
    );
    expect(joined).toEqual(list('tokens').slice(256, 163584));
  });
});

describe('merges', () => {
  it('follow from ranks: the halves are what lower ranks leave of a token', () => {
    // d has two ways to come about; the lower-ranked pair "bc" takes b first.
    const ranked = ['a', 'b', 'c', 'bc', 'ab', 'abc', 'abab'];
    expect(rebuildMerges(ranked)).toEqual(['b c', 'a b', 'a bc', 'ab ab']);
  });
});
