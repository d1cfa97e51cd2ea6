/**
 * Random models of the family: the real shapes without the real weights, for benchmarks and tests. They exist in memory only
 * (a backend fills its rows with fillSynthetic) or as a GGUF file. Spreads are chosen so that every layer changes the
 * residual stream by about as much as the one before and no logit runs away.
 */
import { alignUp, tensorBytes } from '../gguf/sizes.ts';
import type { GgufModel, GgufTensor, GgufValue } from '../gguf/types.ts';
import { type GgufEntry, type GgufOutputTensor, writeGguf } from '../gguf/write.ts';
import { modelConfig } from './gguf.ts';
import { fillSynthetic, type SyntheticRecipe } from './synthetic-blocks.ts';
import { vocabularyEntries } from './synthetic-vocabulary.ts';
import { type Dialect, globalSpecs, layerSpecs, type SlotSpec } from './tensors.ts';
import { mixFileType, mixType, type WeightMix } from './weight-mix.ts';

interface Shape {
  readonly moeLayers: number;
  readonly hidden: number;
  readonly denseWidth: number;
  readonly experts: number;
  readonly expertsUsed: number;
  readonly expertWidth: number;
  /** Of expert width; they are computed as one. */
  readonly sharedExperts?: number;
  /** 0: a plain query projection. */
  readonly qRank: number;
  readonly kvRank: number;
  readonly ropeDim: number;
  readonly nopeDim: number;
  readonly valueDim: number;
  readonly heads: number;
  readonly vocabulary: number;
  readonly context: number;
  readonly rmsEps: number;
  /** What routed experts' weights are multiplied by; default: Kimi K2's. */
  readonly weightScale?: number;
  readonly noYarn?: boolean;
}

/** One dense layer before the MoE layers, one shared expert, head dimensions of the family except in `tiny`. */
const kimiHeads = { kvRank: 512, ropeDim: 64, nopeDim: 128, valueDim: 128, context: 131_072, rmsEps: 1e-6 };
const shapes = {
  tiny: {
    moeLayers: 3,
    hidden: 256,
    denseWidth: 512,
    experts: 16,
    expertsUsed: 4,
    expertWidth: 256,
    qRank: 256,
    kvRank: 256,
    ropeDim: 32,
    nopeDim: 64,
    valueDim: 64,
    heads: 4,
    vocabulary: 1024,
    context: 4096,
    rmsEps: 1e-5,
  },
  /** Multiples of nothing, for tails of every kernel; as many experts as Kimi K2. */
  'tiny-odd': {
    moeLayers: 2,
    hidden: 90,
    denseWidth: 154,
    experts: 384,
    expertsUsed: 8,
    expertWidth: 38,
    qRank: 54,
    kvRank: 46,
    ropeDim: 10,
    nopeDim: 22,
    valueDim: 26,
    heads: 3,
    vocabulary: 1030,
    context: 4096,
    rmsEps: 1e-5,
  },
  'tiny-kimi': {
    ...kimiHeads,
    moeLayers: 3,
    hidden: 512,
    denseWidth: 1024,
    experts: 32,
    expertsUsed: 8,
    expertWidth: 256,
    qRank: 256,
    heads: 4,
    vocabulary: 2048,
  },
  'bench-1b': {
    ...kimiHeads,
    moeLayers: 9,
    hidden: 2048,
    denseWidth: 5120,
    experts: 64,
    expertsUsed: 8,
    expertWidth: 512,
    qRank: 768,
    heads: 16,
    vocabulary: 16_384,
  },
  k2: {
    ...kimiHeads,
    moeLayers: 2,
    hidden: 7168,
    denseWidth: 18_432,
    experts: 384,
    expertsUsed: 8,
    expertWidth: 2048,
    qRank: 1536,
    heads: 64,
    vocabulary: 16_384,
  },
  /** Moonlight-16B-A3B, whole: what a GPU of 16 GB holds. */
  moonlight: {
    ...kimiHeads,
    moeLayers: 26,
    hidden: 2048,
    denseWidth: 11_264,
    experts: 64,
    expertsUsed: 6,
    expertWidth: 1408,
    sharedExperts: 2,
    qRank: 0,
    heads: 16,
    vocabulary: 163_840,
    context: 8192,
    rmsEps: 1e-5,
    weightScale: 2.446,
    noYarn: true,
  },
} as const satisfies Record<string, Shape>;

export type SyntheticShape = keyof typeof shapes;
export const syntheticShapes = Object.keys(shapes) as readonly SyntheticShape[];

export interface SyntheticOptions {
  readonly shape: SyntheticShape;
  readonly mix: WeightMix;
  /** MoE layers after the dense one; default: the shape's. */
  readonly moeLayers?: number | undefined;
  readonly seed?: number;
  /** One attn_kv_b, as old files have, instead of attn_k_b and attn_v_b. */
  readonly joinedKvB?: boolean;
  /** A plain query projection instead of the low-rank pair. */
  readonly plainQuery?: boolean;
  /** 4 expert groups of which 2 are used. */
  readonly groups?: boolean;
  /** Softmax router without bias or normalization, as in V2. */
  readonly softmax?: boolean;
  readonly noYarn?: boolean;
}

/** A model whose bytes come from recipes: `files` names no file. */
export interface SyntheticModel extends GgufModel {
  readonly recipes: ReadonlyMap<string, SyntheticRecipe>;
  /** What `metadata` looks like in a file. */
  readonly entries: readonly GgufEntry[];
}

function shapeEntries(options: SyntheticOptions, shape: Shape): GgufEntry[] {
  const u32 = (key: string, value: number): GgufEntry => ({ key: `deepseek2.${key}`, type: 'u32', value });
  const f32 = (key: string, value: number): GgufEntry => ({ key: `deepseek2.${key}`, type: 'f32', value });
  const keyDim = shape.nopeDim + shape.ropeDim;
  const attention = options.joinedKvB
    ? [u32('attention.key_length', keyDim), u32('attention.value_length', shape.valueDim)]
    : [
        u32('attention.key_length', shape.kvRank + shape.ropeDim),
        u32('attention.value_length', shape.kvRank),
        u32('attention.key_length_mla', keyDim),
        u32('attention.value_length_mla', shape.valueDim),
      ];
  return [
    u32('block_count', 1 + (options.moeLayers ?? shape.moeLayers)),
    u32('leading_dense_block_count', 1),
    u32('context_length', shape.context),
    u32('embedding_length', shape.hidden),
    u32('feed_forward_length', shape.denseWidth),
    u32('vocab_size', shape.vocabulary),
    u32('attention.head_count', shape.heads),
    u32('attention.head_count_kv', options.joinedKvB ? shape.heads : 1),
    u32('attention.q_lora_rank', options.plainQuery ? 0 : shape.qRank),
    u32('attention.kv_lora_rank', shape.kvRank),
    ...attention,
    f32('attention.layer_norm_rms_epsilon', shape.rmsEps),
    u32('expert_count', shape.experts),
    u32('expert_used_count', shape.expertsUsed),
    u32('expert_shared_count', shape.sharedExperts ?? 1),
    u32('expert_feed_forward_length', shape.expertWidth),
    u32('rope.dimension_count', shape.ropeDim),
    f32('rope.freq_base', 50_000),
  ];
}

function routingEntries(options: SyntheticOptions, { weightScale = 2.827 }: Shape): GgufEntry[] {
  const key = (name: string) => `deepseek2.${name}`;
  return [
    { key: key('expert_group_count'), type: 'u32', value: options.groups ? 4 : 1 },
    { key: key('expert_group_used_count'), type: 'u32', value: options.groups ? 2 : 1 },
    { key: key('expert_gating_func'), type: 'u32', value: options.softmax ? 1 : 2 },
    { key: key('expert_weights_scale'), type: 'f32', value: options.softmax ? 1 : weightScale },
    { key: key('expert_weights_norm'), type: 'bool', value: !options.softmax },
  ];
}

/** K2's own: factor 32, both betas 1. */
const yarnEntries: readonly GgufEntry[] = [
  { key: 'deepseek2.rope.scaling.type', type: 'string', value: 'yarn' },
  { key: 'deepseek2.rope.scaling.factor', type: 'f32', value: 32 },
  { key: 'deepseek2.rope.scaling.original_context_length', type: 'u32', value: 4096 },
  { key: 'deepseek2.rope.scaling.yarn_beta_fast', type: 'f32', value: 1 },
  { key: 'deepseek2.rope.scaling.yarn_beta_slow', type: 'f32', value: 1 },
  { key: 'deepseek2.rope.scaling.yarn_log_multiplier', type: 'f32', value: 0.1 },
];

function entriesOf(options: SyntheticOptions, shape: Shape): GgufEntry[] {
  return [
    { key: 'general.architecture', type: 'string', value: 'deepseek2' },
    { key: 'general.name', type: 'string', value: `synthetic ${options.shape} ${options.mix}` },
    { key: 'general.file_type', type: 'u32', value: mixFileType(options.mix) },
    { key: 'general.quantization_version', type: 'u32', value: 2 },
    ...shapeEntries(options, shape),
    ...routingEntries(options, shape),
    ...((options.noYarn ?? shape.noYarn) ? [] : yarnEntries),
    ...vocabularyEntries(shape.vocabulary),
  ];
}

/** The value a reader gets back. */
function storedValue(entry: GgufEntry): GgufValue {
  return entry.type === 'f32' ? Math.fround(entry.value) : entry.value;
}

/**
 * Spread of each slot's values times sqrt(row length), where it is not 1: 2 for logits of a useful range, 1.5 where softer
 * would make all attention alike, 0.7 where what is added to the residual must not outgrow it.
 */
const gains: Partial<Record<SlotSpec['slot'], number>> = {
  output: 2,
  attn_q: 1.5,
  attn_q_b: 1.5,
  attn_kv_a: 1.5,
  attn_output: 0.7,
};

function spreadOf(spec: SlotSpec, kvRank: number): { mean: number; sigma: number } {
  if (spec.slot === 'token_embd') return { mean: 0, sigma: 0.5 };
  if (spec.slot === 'exp_probs_b') return { mean: 0, sigma: 0.02 };
  if (spec.vector) return { mean: 1, sigma: 0.05 };
  // Rows of attn_k_b run over the head's dimensions, but as part of kv_b it is multiplied with the latent.
  const inputs = spec.slot === 'attn_k_b' ? kvRank : (spec.shape[0] ?? 1);
  return { mean: 0, sigma: (gains[spec.slot] ?? 1) / Math.sqrt(inputs) };
}

/** Describes a random model. Equal options give equal bytes. */
export function syntheticModel(options: SyntheticOptions): SyntheticModel {
  const entries = entriesOf(options, shapes[options.shape]);
  const metadata = new Map(entries.map((entry) => [entry.key, storedValue(entry)]));
  const path = `synthetic:${options.shape}`;
  const config = modelConfig({ files: [{ path, bytes: 0 }], version: 3, metadata, tensors: new Map() });
  const dialect: Dialect = { joinedKvB: options.joinedKvB ?? false, fusedGateUp: false, routerBias: !options.softmax };
  const specs = globalSpecs(config).map((spec): readonly [SlotSpec, number] => [spec, 0]);
  for (let layer = 0; layer < config.layers; layer++) {
    for (const spec of layerSpecs(config, layer, dialect)) specs.push([spec, layer]);
  }
  const tensors = new Map<string, GgufTensor>();
  const recipes = new Map<string, SyntheticRecipe>();
  let offset = 0;
  for (const [spec, layer] of specs) {
    const type = mixType(options.mix, spec, layer, config.layers);
    const bytes = tensorBytes(type, spec.shape);
    tensors.set(spec.name, { name: spec.name, type, shape: spec.shape, file: 0, offset, bytes });
    recipes.set(spec.name, {
      type,
      ...spreadOf(spec, config.kvRank),
      seed: (options.seed ?? 1) * 65_537 + recipes.size,
    });
    offset = alignUp(offset + bytes, 32);
  }
  return { files: [{ path, bytes: offset }], version: 3, metadata, tensors, recipes, entries };
}

/** Pieces of a tensor for the writer: a multiple of every block size. */
const pieceBlocks = 1 << 12;

function* syntheticBytes(recipe: SyntheticRecipe, bytes: number): Generator<Uint8Array> {
  const piece = pieceBlocks * tensorBytes(recipe.type, [256]);
  for (let offset = 0; offset < bytes; offset += piece) {
    const chunk = new Uint8Array(Math.min(piece, bytes - offset));
    fillSynthetic(recipe, offset, chunk);
    yield chunk;
  }
}

/** Writes the model of `options` as a GGUF file that other readers of the format load too. */
export async function writeSynthetic(path: string, options: SyntheticOptions): Promise<void> {
  const model = syntheticModel(options);
  const tensors = [...model.tensors.values()].map((tensor): GgufOutputTensor => {
    const recipe = model.recipes.get(tensor.name) as SyntheticRecipe;
    return { ...tensor, data: () => syntheticBytes(recipe, tensor.bytes) };
  });
  await writeGguf(path, { metadata: model.entries, tensors });
}
