/** GGUF metadata of architecture `deepseek2`, with its dialects and gaps, to a ModelConfig. */
import { basename } from 'node:path';
import { perigeeError } from '../errors.ts';
import type { GgufModel } from '../gguf/types.ts';
import type { ModelConfig, YarnConfig } from './config.ts';
import { MetadataKeys } from './keys.ts';

export interface ConfigWishes {
  /** --yarn-beta-fast: wins over the file. */
  readonly yarnBetaFast?: number | undefined;
}

/** Far beyond any model of the family; a value outside is damage, and is refused before anything is computed from it. */
const most = {
  layers: 512,
  width: 1 << 20,
  heads: 1024,
  headDim: 4096,
  rank: 1 << 16,
  vocabulary: 1 << 21,
  experts: 4096,
  context: 1 << 26,
};

type Attention = Pick<ModelConfig, 'heads' | 'qRank' | 'kvRank' | 'nopeDim' | 'ropeDim' | 'valueDim'>;
type Experts = Pick<
  ModelConfig,
  | 'denseLayers'
  | 'denseWidth'
  | 'experts'
  | 'expertsUsed'
  | 'expertWidth'
  | 'sharedWidth'
  | 'expertGroups'
  | 'expertGroupsUsed'
  | 'gating'
  | 'normalizeWeights'
  | 'weightScale'
>;

function readAttention(keys: MetadataKeys, layers: number): Attention {
  const span = { from: 0, to: layers };
  const heads = keys.layerInteger('attention.head_count', { least: 1, most: most.heads }, span);
  const ropeDim = keys.integer('rope.dimension_count', { least: 2, most: most.headDim });
  if (ropeDim % 2 !== 0) throw keys.fail('rope.dimension_count', 'an even number: rope turns pairs');
  // Files made for the absorbed form describe the cache in key_length and value_length and the heads in the *_mla keys.
  const mla = keys.integer('attention.key_length_mla', { least: 0, most: most.headDim, absent: 0 }) > 0;
  const suffix = mla ? '_mla' : '';
  const keyDim = keys.integer(`attention.key_length${suffix}`, { least: 1, most: most.headDim });
  const valueDim = keys.integer(`attention.value_length${suffix}`, { least: 1, most: most.headDim });
  if (keyDim <= ropeDim) throw keys.fail(`attention.key_length${suffix}`, `more than rope.dimension_count, ${ropeDim}`);
  return {
    heads,
    qRank: keys.integer('attention.q_lora_rank', { least: 0, most: most.rank, absent: 0 }),
    kvRank: keys.integer('attention.kv_lora_rank', { least: 1, most: most.rank }),
    nopeDim: keyDim - ropeDim,
    ropeDim,
    valueDim,
  };
}

function readGating(keys: MetadataKeys): ModelConfig['gating'] {
  const gating = keys.integer('expert_gating_func', { least: 0, most: 255, absent: 0 });
  if (gating > 2) {
    throw perigeeError('MODEL_UNSUPPORTED', {
      what: `its expert_gating_func is ${gating}, and only softmax (1) and sigmoid (2) are known`,
    });
  }
  return gating === 2 ? 'sigmoid' : 'softmax';
}

/** Group routing; absent or 0 in older files means one group. */
function readGroups(keys: MetadataKeys, experts: number, expertsUsed: number) {
  const expertGroups = keys.integer('expert_group_count', { least: 0, most: experts, absent: 0 }) || 1;
  const expertGroupsUsed =
    keys.integer('expert_group_used_count', { least: 0, most: expertGroups, absent: 0 }) || expertGroups;
  if (experts % expertGroups !== 0) throw keys.fail('expert_group_count', `a divisor of expert_count, ${experts}`);
  if ((experts / expertGroups) * expertGroupsUsed < expertsUsed) {
    throw keys.fail(
      'expert_group_used_count',
      `enough groups of ${experts / expertGroups} experts to choose ${expertsUsed} from`,
    );
  }
  return { expertGroups, expertGroupsUsed };
}

function readExperts(keys: MetadataKeys, layers: number): Experts {
  const experts = keys.integer('expert_count', { least: 0, most: most.experts, absent: 0 });
  const leading = keys.integer('leading_dense_block_count', { least: 0, most: most.layers, absent: 0 });
  const denseLayers = experts === 0 ? layers : Math.min(leading, layers);
  const width = { least: 1, most: most.width };
  const denseWidth =
    denseLayers === 0 ? 0 : keys.layerInteger('feed_forward_length', width, { from: 0, to: denseLayers });
  if (denseLayers === layers) {
    const none = { experts: 0, expertsUsed: 0, expertWidth: 0, sharedWidth: 0, expertGroups: 1, expertGroupsUsed: 1 };
    return { ...none, denseLayers, denseWidth, gating: 'softmax', normalizeWeights: false, weightScale: 1 };
  }
  const span = { from: denseLayers, to: layers };
  const expertsUsed = keys.layerInteger('expert_used_count', { least: 1, most: experts }, span);
  const expertWidth = keys.layerInteger('expert_feed_forward_length', width, span);
  const shared = keys.integer('expert_shared_count', { least: 0, most: 64 });
  return {
    denseLayers,
    denseWidth,
    experts,
    expertsUsed,
    expertWidth,
    sharedWidth: shared * expertWidth,
    ...readGroups(keys, experts, expertsUsed),
    gating: readGating(keys),
    normalizeWeights: keys.boolean('expert_weights_norm', false),
    // 0 is how some writers say "no scaling".
    weightScale: keys.number('expert_weights_scale', { least: 0, most: 1e3, absent: 1 }) || 1,
  };
}

interface Betas {
  readonly betaFast: number;
  readonly betaSlow: number;
  readonly source: string;
}

/** Files older than mid 2026 lack the betas. K2 0711 and 0905 were trained with 1/1; llama.cpp takes 32/1 for all. */
function readBetas(
  gguf: GgufModel,
  keys: MetadataKeys,
  factor: number,
  base: number,
  heads: number,
  wishes: ConfigWishes,
): Betas {
  const name = ['general.name', 'general.version', 'general.finetune']
    .map((key) => gguf.metadata.get(key) ?? '')
    .join(' ');
  const kimi0711 = factor === 32 && base === 50_000 && heads === 64;
  const kimi0905 = /kimi/i.test(name) && name.includes('0905');
  const range = { least: 1e-3, most: 1e6 };
  const inFile = keys.has('rope.scaling.yarn_beta_fast');
  const kimi = kimi0711 || kimi0905;
  const betaFast = keys.number('rope.scaling.yarn_beta_fast', { ...range, absent: kimi ? 1 : 32 });
  const betaSlow = keys.number('rope.scaling.yarn_beta_slow', { ...range, absent: 1 });
  const wish = wishes.yarnBetaFast;
  if (wish !== undefined) {
    if (!(wish >= range.least && wish <= range.most)) {
      const expected = `a number from ${range.least} to ${range.most}`;
      throw perigeeError('MODEL_BAD_CONFIG', { key: '--yarn-beta-fast', found: `${wish}`, expected });
    }
    return { betaFast: wish, betaSlow, source: '--yarn-beta-fast' };
  }
  return { betaFast, betaSlow, source: inFile ? 'file' : kimi ? 'Kimi K2 default' : 'llama.cpp default' };
}

/**
 * The two YaRN temperatures. yarn_log_multiplier is 0.1 * mscale_all_dim. Above 0: m from it, and cos and sin stay as they are,
 * since mscale equals mscale_all_dim. Exactly 0: the model leaves the scores alone and stretches cos and sin instead. Absent:
 * llama.cpp's legacy, both.
 */
function readTemperatures(keys: MetadataKeys, factor: number): Pick<YarnConfig, 'attentionFactor' | 'magnitude'> {
  const log = Math.log(factor);
  const extra = keys.number('rope.scaling.attn_factor', { least: 1e-3, most: 1e3, absent: 1 });
  const stretched = 1 + 0.1 * log;
  if (!keys.has('rope.scaling.yarn_log_multiplier'))
    return { attentionFactor: stretched * extra, magnitude: stretched * extra };
  const multiplier = keys.number('rope.scaling.yarn_log_multiplier', { least: 0, most: 10 });
  // `perigee convert` states the stretch of models whose mscale and mscale_all_dim differ.
  const implied = multiplier === 0 ? stretched : 1;
  const magnitude = keys.number('rope.scaling.yarn_attn_factor', { least: 1e-3, most: 1e3, absent: implied });
  return { attentionFactor: (1 + multiplier * log) * extra, magnitude: magnitude * extra };
}

function readYarn(
  gguf: GgufModel,
  keys: MetadataKeys,
  shape: { readonly base: number; readonly heads: number; readonly context: number },
  wishes: ConfigWishes,
): Pick<ModelConfig, 'yarn' | 'yarnBetaSource'> {
  const type = keys.text('rope.scaling.type') ?? 'none';
  const factor = keys.number('rope.scaling.factor', { least: 0, most: 1e6, absent: 1 }) || 1;
  if (type !== 'yarn') {
    if (factor !== 1)
      throw perigeeError('MODEL_UNSUPPORTED', {
        what: `its rope scaling is '${type}' by ${factor}, and only 'yarn' is known`,
      });
    return { yarn: null, yarnBetaSource: 'no YaRN' };
  }
  if (factor < 1) throw keys.fail('rope.scaling.factor', 'at least 1');
  const { source, ...betas } = readBetas(gguf, keys, factor, shape.base, shape.heads, wishes);
  const originalContext = keys.integer('rope.scaling.original_context_length', {
    least: 1,
    most: most.context,
    absent: shape.context,
  });
  return { yarn: { factor, originalContext, ...betas, ...readTemperatures(keys, factor) }, yarnBetaSource: source };
}

/** Rows of the embedding: stated, or as many as the vocabulary lists; the tensors' shapes are checked against it later. */
function readVocabulary(gguf: GgufModel, keys: MetadataKeys): number {
  const tokens = gguf.metadata.get('tokenizer.ggml.tokens');
  const listed = Array.isArray(tokens) ? { absent: tokens.length } : {};
  const vocabulary = keys.integer('vocab_size', { least: 1, most: most.vocabulary, ...listed });
  if (Array.isArray(tokens) && tokens.length !== vocabulary) {
    throw perigeeError('MODEL_BAD_CONFIG', {
      key: 'tokenizer.ggml.tokens',
      found: `a list of ${tokens.length}`,
      expected: `one entry for each of the vocabulary's ${vocabulary} ids`,
    });
  }
  return vocabulary;
}

function modelName(gguf: GgufModel): string {
  const name = gguf.metadata.get('general.name');
  return typeof name === 'string' && name !== '' ? name : basename(gguf.files[0]?.path ?? 'model', '.gguf');
}

/** The shape of the model in `gguf`. Every value is within sane bounds and consistent with the others, or an error says which is not. */
export function modelConfig(gguf: GgufModel, wishes: ConfigWishes = {}): ModelConfig {
  const architecture = gguf.metadata.get('general.architecture');
  if (architecture !== 'deepseek2') {
    const found = architecture === undefined ? 'absent' : JSON.stringify(architecture).slice(0, 80);
    throw perigeeError('MODEL_UNSUPPORTED', { what: `its general.architecture is ${found}` });
  }
  const keys = new MetadataKeys(gguf.metadata, architecture);
  const blocks = keys.integer('block_count', { least: 1, most: most.layers });
  // Multi-token-prediction blocks are counted in block_count and come last; generation does not use them.
  const layers = blocks - keys.integer('nextn_predict_layers', { least: 0, most: blocks - 1, absent: 0 });
  const context = keys.integer('context_length', { least: 1, most: most.context });
  const attention = readAttention(keys, layers);
  const ropeBase = keys.number('rope.freq_base', { least: 1.0001, most: 1e12, absent: 10_000 });
  return {
    name: modelName(gguf),
    architecture,
    layers,
    hidden: keys.integer('embedding_length', { least: 1, most: most.width }),
    vocabulary: readVocabulary(gguf, keys),
    context,
    ...attention,
    ...readExperts(keys, layers),
    rmsEps: keys.number('attention.layer_norm_rms_epsilon', { least: 1e-12, most: 0.1 }),
    ropeBase,
    ...readYarn(gguf, keys, { base: ropeBase, heads: attention.heads, context }, wishes),
  };
}
