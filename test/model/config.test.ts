/** Metadata of published models, its dialects and its gaps; expected numbers are from the models' papers and configs. */
import { describe, expect, it } from 'vitest';
import type { ModelConfig } from '../../src/model/config.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { errorOf } from '../gguf/raw.ts';
import { deepseekV2Lite, deepseekV3, kimiK2, kimiLater, modelOf, moonlight } from './known-models.ts';

/** The factor that scores are multiplied with. */
function softmaxScale(config: ModelConfig): number {
  return (config.yarn?.attentionFactor ?? 1) ** 2 / Math.sqrt(config.nopeDim + config.ropeDim);
}

describe('Kimi K2', () => {
  const config = modelConfig(modelOf(kimiK2));

  it('has the shape of the model card', () => {
    expect(config).toMatchObject({
      name: 'file',
      layers: 61,
      denseLayers: 1,
      hidden: 7168,
      vocabulary: 163_840,
      context: 131_072,
      heads: 64,
      qRank: 1536,
      kvRank: 512,
      nopeDim: 128,
      ropeDim: 64,
      valueDim: 128,
      denseWidth: 18_432,
      experts: 384,
      expertsUsed: 8,
      expertWidth: 2048,
      sharedWidth: 2048,
      expertGroups: 1,
      expertGroupsUsed: 1,
      gating: 'sigmoid',
      normalizeWeights: true,
      ropeBase: 50_000,
    });
    expect(config.weightScale).toBeCloseTo(2.827, 6);
    expect(config.rmsEps).toBeCloseTo(1e-6, 12);
  });

  it('applies m squared once to the scores and leaves cos and sin alone', () => {
    expect(config.yarn?.attentionFactor).toBeCloseTo(1.3465736, 6);
    expect(softmaxScale(config)).toBeCloseTo(0.1308608, 6);
    expect(config.yarn?.magnitude).toBe(1);
    expect(softmaxScale(modelConfig(modelOf(kimiLater)))).toBeCloseTo(0.14467963, 6);
  });
});

describe('YaRN betas', () => {
  const betas = (...args: Parameters<typeof modelConfig>) => {
    const { yarn, yarnBetaSource } = modelConfig(...args);
    return [yarn?.betaFast, yarn?.betaSlow, yarnBetaSource];
  };

  it("are the file's where it has them", () => {
    const own = { 'rope.scaling.yarn_beta_fast': 32, 'rope.scaling.yarn_beta_slow': 2 };
    expect(betas(modelOf(kimiK2, own))).toEqual([32, 2, 'file']);
  });

  it('are 1 and 1 for Kimi K2 of July and of September 2025, as trained', () => {
    expect(betas(modelOf(kimiK2))).toEqual([1, 1, 'Kimi K2 default']);
    expect(betas(modelOf(kimiLater, { 'general.name': 'Kimi K2 Instruct 0905' }))).toEqual([1, 1, 'Kimi K2 default']);
    expect(betas(modelOf(kimiLater, { 'general.name': 'Kimi K2 Instruct', 'general.version': '0905' }))).toEqual([
      1,
      1,
      'Kimi K2 default',
    ]);
  });

  it("are llama.cpp's 32 and 1 for every other file that lacks them", () => {
    expect(betas(modelOf(kimiLater, { 'general.name': 'Kimi K2 Thinking' }))).toEqual([32, 1, 'llama.cpp default']);
    expect(betas(modelOf(deepseekV3))).toEqual([32, 1, 'llama.cpp default']);
  });

  it('give way to --yarn-beta-fast', async () => {
    expect(betas(modelOf(kimiK2), { yarnBetaFast: 32 })).toEqual([32, 1, '--yarn-beta-fast']);
    expect((await errorOf(() => modelConfig(modelOf(kimiK2), { yarnBetaFast: Number.NaN }))).message).toContain(
      '--yarn-beta-fast',
    );
  });

  it('do not exist without YaRN', () => expect(betas(modelOf(moonlight))).toEqual([undefined, undefined, 'no YaRN']));
});

describe('YaRN temperatures', () => {
  const yarnOf = (change: Record<string, number | undefined>) => modelConfig(modelOf(deepseekV3, change)).yarn;
  const m = 1 + 0.1 * Math.log(40);

  it('without a multiplier follow llama.cpp: m both in the scores and in cos and sin', () => {
    expect(yarnOf({ 'rope.scaling.yarn_log_multiplier': undefined })).toMatchObject({
      attentionFactor: m,
      magnitude: m,
    });
  });

  it('with a multiplier of 0 stretch cos and sin only, as mscale_all_dim 0 does', () => {
    expect(yarnOf({ 'rope.scaling.yarn_log_multiplier': 0 })).toMatchObject({ attentionFactor: 1, magnitude: m });
  });

  it('are multiplied by attn_factor', () => {
    expect(yarnOf({ 'rope.scaling.attn_factor': 2 })).toMatchObject({ magnitude: 2 });
  });
});

describe('relatives', () => {
  it('DeepSeek V3 routes by groups', () => {
    const config = modelConfig(modelOf(deepseekV3));
    expect(config).toMatchObject({
      denseLayers: 3,
      heads: 128,
      experts: 256,
      expertGroups: 8,
      expertGroupsUsed: 4,
      weightScale: 2.5,
      ropeBase: 10_000,
    });
    expect(softmaxScale(config)).toBeCloseTo(0.13523378, 6);
  });

  it('DeepSeek V2 Lite, from an old file, has a plain query, softmax and no groups', () => {
    const config = modelConfig(modelOf(deepseekV2Lite));
    expect(config).toMatchObject({
      qRank: 0,
      nopeDim: 128,
      valueDim: 128,
      expertWidth: 1408,
      sharedWidth: 2816,
      gating: 'softmax',
      normalizeWeights: false,
      weightScale: 1,
      expertGroups: 1,
      expertGroupsUsed: 1,
      ropeBase: 10_000,
    });
    expect(config.yarn?.attentionFactor).toBeCloseTo(1.2608038, 6);
    expect(softmaxScale(config)).toBeCloseTo(0.11472139, 6);
  });

  it('Moonlight has no YaRN', () => {
    const config = modelConfig(modelOf(moonlight));
    expect(config).toMatchObject({
      qRank: 0,
      yarn: null,
      gating: 'sigmoid',
      normalizeWeights: true,
      sharedWidth: 2816,
      ropeBase: 50_000,
    });
    expect(softmaxScale(config)).toBeCloseTo(0.07216878, 8);
  });
});

describe('dialects', () => {
  it('accept per-layer arrays', () => {
    const config = modelConfig(
      modelOf(deepseekV3, {
        'attention.head_count': Array.from({ length: 61 }, () => 128),
        feed_forward_length: Array.from({ length: 61 }, (_, layer) => (layer < 3 ? 18_432 : 2048)),
        expert_feed_forward_length: Array.from({ length: 61 }, (_, layer) => (layer < 3 ? 0 : 2048)),
      }),
    );
    expect(config).toMatchObject({ heads: 128, denseWidth: 18_432, expertWidth: 2048 });
  });

  it('refuse layers that differ', async () => {
    const heads = Array.from({ length: 61 }, (_, layer) => 64 + (layer % 2));
    expect((await errorOf(() => modelConfig(modelOf(kimiK2, { 'attention.head_count': heads })))).message).toMatch(
      /one value for layers 0 to 60/,
    );
  });

  it('leave multi-token prediction blocks out', () => {
    expect(modelConfig(modelOf(deepseekV3, { block_count: 62, nextn_predict_layers: 1 })).layers).toBe(61);
  });

  it('take 0 groups, scale 0 and rank 0 as "none"', () => {
    const none = {
      expert_group_count: 0,
      expert_group_used_count: 0,
      expert_weights_scale: 0,
      'attention.q_lora_rank': 0,
    };
    expect(modelConfig(modelOf(kimiK2, none))).toMatchObject({
      expertGroups: 1,
      expertGroupsUsed: 1,
      weightScale: 1,
      qRank: 0,
    });
  });

  it('take the vocabulary from the token list where vocab_size is absent', () => {
    const gguf = modelOf(moonlight, { vocab_size: undefined });
    const metadata = new Map([...gguf.metadata, ['tokenizer.ggml.tokens', ['a', 'b', 'c']] as const]);
    expect(modelConfig({ ...gguf, metadata }).vocabulary).toBe(3);
  });

  it('may have dense layers only', () => {
    expect(modelConfig(modelOf(moonlight, { expert_count: 0 }))).toMatchObject({
      denseLayers: 27,
      experts: 0,
      sharedWidth: 0,
    });
  });
});

describe('absurd values are refused before anything is computed', () => {
  const refusals: [string, Record<string, unknown>, RegExp][] = [
    ['no layers', { block_count: 0 }, /block_count is 0, expected an integer from 1/],
    ['2^32 - 1 layers', { block_count: 2 ** 32 - 1 }, /block_count is 4294967295/],
    ['513 layers', { block_count: 513 }, /block_count is 513/],
    ['layers as text', { block_count: 'many' }, /block_count is "many"/],
    ['layers as a list', { block_count: [61, 61] }, /block_count is an array of 2/],
    ['half a layer', { block_count: 1.5 }, /block_count is 1.5/],
    ['a 64-bit layer count', { block_count: 2n ** 63n }, /block_count is "9223372036854775808"/],
    ['no layers beside prediction', { nextn_predict_layers: 61 }, /nextn_predict_layers is 61/],
    ['no heads', { 'attention.head_count': 0 }, /head_count is 0/],
    ['absent heads', { 'attention.head_count': undefined }, /head_count is absent/],
    ['heads for too few layers', { 'attention.head_count': [64, 64] }, /head_count is an array of 2/],
    [
      'more experts used than there are',
      { expert_used_count: 385 },
      /expert_used_count is 385, expected an integer from 1 to 384/,
    ],
    ['no experts used', { expert_used_count: 0 }, /expert_used_count is 0/],
    ['a million experts', { expert_count: 1e6 }, /expert_count is 1000000/],
    ['groups that do not divide the experts', { expert_group_count: 7 }, /expert_group_count is 7, expected a divisor/],
    [
      'more groups used than there are',
      { expert_group_count: 8, expert_group_used_count: 9 },
      /expert_group_used_count is 9/,
    ],
    ['groups too small to choose from', { expert_group_count: 192, expert_group_used_count: 3 }, /enough groups of 2/],
    ['an odd rope dimension', { 'rope.dimension_count': 63 }, /dimension_count is 63, expected an even number/],
    ['a rope dimension of the whole key', { 'rope.dimension_count': 192 }, /key_length_mla is 192, expected more than/],
    ['a negative width', { embedding_length: -7168 }, /embedding_length is -7168/],
    ['an epsilon of 0', { 'attention.layer_norm_rms_epsilon': 0 }, /epsilon is 0/],
    ['an epsilon that is not a number', { 'attention.layer_norm_rms_epsilon': Number.NaN }, /epsilon is/],
    ['a rope base of 0', { 'rope.freq_base': 0 }, /freq_base is 0/],
    ['an infinite YaRN factor', { 'rope.scaling.factor': Number.POSITIVE_INFINITY }, /scaling.factor is/],
    ['a YaRN factor below 1', { 'rope.scaling.factor': 0.5 }, /scaling.factor is 0.5/],
    ['no original context', { 'rope.scaling.original_context_length': 0 }, /original_context_length is 0/],
    ['a context of 2^40', { context_length: 2 ** 40 }, /context_length is 1099511627776/],
    ['a scale of -1', { expert_weights_scale: -1 }, /weights_scale is -1/],
    ['normalization as text', { expert_weights_norm: 'yes' }, /weights_norm is "yes"/],
    ['rope scaling as a number', { 'rope.scaling.type': 2 }, /scaling.type is 2/],
  ];

  it.each(refusals)('%s', async (_, change, sentence) => {
    const error = await errorOf(() => modelConfig(modelOf(kimiK2, change as never)));
    expect([error.code, error.exitCode]).toEqual(['MODEL_BAD_CONFIG', 2]);
    expect(error.message).toMatch(sentence);
  });

  it.each([
    ['another architecture', { 'general.architecture': 'llama' }, /general.architecture is "llama"/],
    ['no architecture', { 'general.architecture': undefined }, /general.architecture is absent/],
    ['another gating function', { expert_gating_func: 3 }, /expert_gating_func is 3/],
    ['linear rope scaling', { 'rope.scaling.type': 'linear' }, /rope scaling is 'linear' by 32/],
  ])('%s is named as unsupported', async (_, change, sentence) => {
    const error = await errorOf(() => modelConfig(modelOf(kimiK2, change)));
    expect(error.code).toBe('MODEL_UNSUPPORTED');
    expect(error.message).toMatch(sentence);
  });
});
