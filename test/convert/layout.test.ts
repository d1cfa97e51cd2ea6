import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { convertCheckpoint } from '../../src/convert/convert.ts';
import {
  f32,
  openOutput,
  smallConfig,
  smallTensors,
  type Tensors,
  temporary,
  valuesOf,
  writeCheckpoint,
} from './support.ts';

let outputs = 0;

/** Converts to F32 and returns a reader of the output's tensors as floats. */
async function convertSmall(tensors: Tensors, config: object = smallConfig, shards = 1) {
  const path = join(temporary, `layout-${outputs++}.gguf`);
  const result = await convertCheckpoint(await writeCheckpoint(config, tensors, shards), path, { type: 'f32' });
  const { model, bytes } = await openOutput(path);
  return { result, model, values: (name: string) => new Float32Array(bytes(name)) };
}

const { kv_lora_rank: kv, qk_nope_head_dim: nope, v_head_dim: value, num_attention_heads: heads } = smallConfig;

describe('a converted checkpoint', () => {
  it('has kv_b_proj as keys transposed per head, and values as they are', async () => {
    const tensors = smallTensors();
    const { model, values } = await convertSmall(tensors);
    const source = valuesOf(tensors, 'model.layers.1.self_attn.kv_b_proj.weight');
    const keys = values('blk.1.attn_k_b.weight');
    const upward = values('blk.1.attn_v_b.weight');
    expect(model.tensors.get('blk.1.attn_k_b.weight')?.shape).toEqual([nope, kv, heads]);
    expect(model.tensors.get('blk.1.attn_v_b.weight')?.shape).toEqual([kv, value, heads]);
    for (let head = 0; head < heads; head++) {
      for (let latent = 0; latent < kv; latent++) {
        const at = (row: number) => source[(head * (nope + value) + row) * kv + latent];
        for (let i = 0; i < nope; i++) expect(keys[(head * kv + latent) * nope + i]).toBe(at(i));
        for (let i = 0; i < value; i++) expect(upward[(head * value + i) * kv + latent]).toBe(at(nope + i));
      }
    }
  });

  it('has experts stacked in order, and everything else untouched', async () => {
    const tensors = smallTensors();
    const { values } = await convertSmall(tensors, smallConfig, 3);
    const stacked = Array.from({ length: 4 }, (_, e) => [
      ...valuesOf(tensors, `model.layers.1.mlp.experts.${e}.down_proj.weight`),
    ]);
    expect([...values('blk.1.ffn_down_exps.weight')]).toEqual(stacked.flat());
    expect(values('token_embd.weight')).toEqual(valuesOf(tensors, 'model.embed_tokens.weight'));
    expect(values('output.weight')).toEqual(valuesOf(tensors, 'lm_head.weight'));
    expect(values('blk.1.exp_probs_b.bias')).toEqual(
      valuesOf(tensors, 'model.layers.1.mlp.gate.e_score_correction_bias'),
    );
    expect(values('blk.0.attn_kv_a_mqa.weight')).toEqual(
      valuesOf(tensors, 'model.layers.0.self_attn.kv_a_proj_with_mqa.weight'),
    );
  });

  it('is the same whether experts were stored one by one or joined', async () => {
    const tensors = smallTensors();
    const single = await convertSmall(tensors);
    const at = 'model.layers.1.mlp.experts.';
    const joined = Object.fromEntries(Object.entries(tensors).filter(([name]) => !name.startsWith(at)));
    const all = (kind: string, e: number) => [...valuesOf(tensors, `${at}${e}.${kind}_proj.weight`)];
    const experts = [0, 1, 2, 3];
    const gateUp = experts.flatMap((e) => [...all('gate', e), ...all('up', e)]);
    joined[`${at}gate_up_proj`] = f32([4, 128, 96], Float32Array.from(gateUp));
    joined[`${at}down_proj`] = f32([4, 96, 64], Float32Array.from(experts.flatMap((e) => all('down', e))));
    const { values } = await convertSmall(joined);
    for (const kind of ['gate', 'up', 'down']) {
      const name = `blk.1.ffn_${kind}_exps.weight`;
      expect(values(name)).toEqual(single.values(name));
    }
  });

  it('takes the language model out of a multimodal checkpoint and says what it left', async () => {
    const tensors = { ...smallTensors('language_model.'), 'vision_tower.patch_embed.weight': f32([4, 4]) };
    const config = {
      architectures: ['KimiK25ForConditionalGeneration'],
      model_type: 'kimi_k25',
      text_config: smallConfig,
    };
    const { result, model } = await convertSmall(tensors, config);
    expect(model.tensors.has('blk.1.attn_norm.weight')).toBe(true);
    expect(result.notes).toContainEqual(expect.stringContaining('1 tensors outside the language model'));
  });

  it('leaves multi-token-prediction layers out and says so', async () => {
    const tensors = {
      ...smallTensors(),
      'model.layers.2.eh_proj.weight': f32([2, 2]),
      'model.layers.2.enorm.weight': f32([2]),
    };
    const { result, model } = await convertSmall(tensors);
    expect([...model.tensors.keys()].some((name) => name.startsWith('blk.2.'))).toBe(false);
    expect(result.notes).toContainEqual(expect.stringContaining('2 tensors of multi-token-prediction layers'));
  });

  it('does without a head of its own where embeddings are tied, and gives the embedding the care of a head', async () => {
    const tensors = smallTensors();
    delete tensors['lm_head.weight'];
    const folder = await writeCheckpoint({ ...smallConfig, tie_word_embeddings: true }, tensors);
    const path = join(temporary, 'tied.gguf');
    await convertCheckpoint(folder, path, { type: 'q4_0' });
    const { model } = await openOutput(path);
    expect(model.tensors.has('output.weight')).toBe(false);
    expect(model.tensors.get('token_embd.weight')?.type).toBe('Q8_0');
  });

  it('needs neither router bias nor shared experts nor a low-rank query', async () => {
    const tensors = smallTensors();
    for (const name of Object.keys(tensors)) if (/e_score|shared_experts|q_a_|q_b_/.test(name)) delete tensors[name];
    for (const layer of [0, 1]) tensors[`model.layers.${layer}.self_attn.q_proj.weight`] = f32([144, 96]);
    const config = {
      ...smallConfig,
      n_shared_experts: null,
      q_lora_rank: null,
      scoring_func: 'softmax',
      topk_method: 'greedy',
    };
    const { model } = await convertSmall(tensors, config);
    expect(model.tensors.get('blk.0.attn_q.weight')?.shape).toEqual([96, 144]);
    expect(model.metadata.get('deepseek2.attention.q_lora_rank')).toBe(0);
    expect(model.metadata.get('deepseek2.expert_gating_func')).toBe(1);
  });
});

describe('a conversion that cannot work', () => {
  const attempt = async (tensors: Tensors, config: object = smallConfig) =>
    convertCheckpoint(await writeCheckpoint(config, tensors), join(temporary, 'refused.gguf'), { type: 'f32' });
  const without = (name: string) =>
    Object.fromEntries(Object.entries(smallTensors()).filter(([each]) => each !== name));
  const changed = (name: string, tensor: Tensors[string]) => ({ ...smallTensors(), [name]: tensor });
  const q = 'model.layers.0.self_attn.q_b_proj.weight';
  const nan = f32([144, 64]);
  new Float32Array(nan.bytes.buffer)[77] = Number.NaN;

  it.each([
    ['a missing tensor', without(q), smallConfig, 'CONVERT_TENSOR_MISSING', q],
    [
      'an unexplained tensor',
      changed('model.layers.0.self_attn.q_b_proj.bias', f32([4])),
      smallConfig,
      'CONVERT_TENSOR_EXTRA',
      'q_b_proj.bias',
    ],
    ['another shape', changed(q, f32([64, 144])), smallConfig, 'CONVERT_TENSOR_SHAPE', '[64, 144]'],
    [
      'an unknown dtype',
      changed(q, { dtype: 'F4', shape: [144, 64], bytes: new Uint8Array(4) }),
      smallConfig,
      'CONVERT_DTYPE',
      'F4',
    ],
    ['integers for weights', changed(q, { ...f32([144, 64]), dtype: 'I32' }), smallConfig, 'CONVERT_DTYPE', 'I32'],
    [
      'fp8 without scales',
      changed(q, { dtype: 'F8_E4M3', shape: [144, 64], bytes: new Uint8Array(144 * 64) }),
      smallConfig,
      'CONVERT_TENSOR_MISSING',
      `${q}_scale_inv`,
    ],
    ['a NaN among the weights', changed(q, nan), smallConfig, 'CONVERT_NOT_FINITE', 'blk.0.attn_q_b.weight'],
    [
      'another architecture',
      {},
      { ...smallConfig, architectures: ['LlamaForCausalLM'] },
      'CONVERT_UNSUPPORTED',
      'LlamaForCausalLM',
    ],
    ['another way of choosing experts', {}, { ...smallConfig, topk_method: 'hash' }, 'CONVERT_UNSUPPORTED', 'hash'],
    [
      'another rope scaling',
      {},
      { ...smallConfig, rope_scaling: { type: 'longrope' } },
      'CONVERT_UNSUPPORTED',
      'longrope',
    ],
    ['biases in attention', {}, { ...smallConfig, attention_bias: true }, 'CONVERT_UNSUPPORTED', 'attention_bias'],
    [
      'a config that lacks a field',
      {},
      { ...smallConfig, kv_lora_rank: undefined },
      'CONVERT_CONFIG_FIELD',
      'kv_lora_rank',
    ],
    [
      'a config with a field of another kind',
      {},
      { ...smallConfig, hidden_size: '96' },
      'CONVERT_UNSUPPORTED',
      'hidden_size',
    ],
  ])('is refused for %s, by name', async (_, tensors, config, code, mentioned) => {
    await expect(attempt(tensors, config)).rejects.toMatchObject({ code, message: expect.stringContaining(mentioned) });
    expect((await readdir(temporary)).filter((name) => name.startsWith('refused'))).toEqual([]);
  });

  it('is refused for a folder that is no checkpoint', async () => {
    await expect(convertCheckpoint(temporary, join(temporary, 'x.gguf'), { type: 'f32' })).rejects.toMatchObject({
      code: 'CONVERT_NO_CONFIG',
    });
  });

  it('is refused for a config.json that is not JSON', async () => {
    const folder = await writeCheckpoint({}, {});
    await writeFile(join(folder, 'config.json'), '{');
    await expect(convertCheckpoint(folder, join(temporary, 'x.gguf'), { type: 'f32' })).rejects.toMatchObject({
      code: 'CONVERT_BAD_JSON',
    });
  });

  it('to an unwritable path says so', async () => {
    const folder = await writeCheckpoint(smallConfig, smallTensors());
    const path = join(temporary, 'no-such-folder', 'x.gguf');
    await expect(convertCheckpoint(folder, path, { type: 'f32' })).rejects.toMatchObject({ code: 'GGUF_WRITE_FAILED' });
  });

  it('leaves an older output as it was', async () => {
    const path = join(temporary, 'kept.gguf');
    await writeFile(path, 'older');
    const folder = await writeCheckpoint(smallConfig, changed(q, nan));
    await expect(convertCheckpoint(folder, path, { type: 'f32' })).rejects.toMatchObject({
      code: 'CONVERT_NOT_FINITE',
    });
    expect(await readFile(path, 'utf8')).toBe('older');
  });
});
