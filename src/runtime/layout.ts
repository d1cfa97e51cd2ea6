/** The engine's plain structs, written into memory field by field; the order is that of engine/config.h and engine/job.h. */
import type { ModelConfig } from '../model/config.ts';

/** Limits of engine/config.h. */
export interface EngineLimits {
  readonly ranks: number;
  readonly batchTokens: number;
  readonly batchOutputs: number;
  readonly batchSequences: number;
  readonly pages: number;
  readonly pageTokens: number;
  readonly context: number;
  /** Of activations: floats, and whether rounded to bf16. */
  readonly exact: boolean | 'bf16';
  readonly spins: number;
  readonly taps: boolean;
  /** Only routed experts, for a device that runs the rest. */
  readonly expertsOnly: boolean;
}

/** Vector slots, in the order of engine/config.h. */
export const vectorSlots = [
  'output_norm',
  'attn_norm',
  'ffn_norm',
  'attn_q_a_norm',
  'attn_kv_a_norm',
  'exp_probs_b',
] as const;

/** Stages of engine/door.h, for the profile. */
export const stages = [
  'embed',
  'qkv',
  'query',
  'attention',
  'attention-out',
  'router',
  'experts-in',
  'experts-out',
  'dense',
  'head',
  'wait',
] as const;

/** Status of engine/engine.h. */
export const statuses = [
  'ok',
  'bad config',
  'arena too small',
  'unknown instruction set',
  'bad slot',
  'bad step',
] as const;

type Field = readonly ['u32' | 'f32', number];

const configFields = (c: ModelConfig): Field[] => [
  ['u32', c.layers],
  ['u32', c.denseLayers],
  ['u32', c.hidden],
  ['u32', c.vocabulary],
  ['u32', c.heads],
  ['u32', c.qRank],
  ['u32', c.kvRank],
  ['u32', c.nopeDim],
  ['u32', c.ropeDim],
  ['u32', c.valueDim],
  ['u32', c.denseWidth],
  ['u32', c.experts],
  ['u32', c.expertsUsed],
  ['u32', c.expertWidth],
  ['u32', c.sharedWidth],
  ['u32', c.expertGroups],
  ['u32', c.expertGroupsUsed],
  ['u32', c.gating === 'sigmoid' ? 1 : 0],
  ['u32', c.normalizeWeights ? 1 : 0],
  ['f32', c.weightScale],
  ['f32', c.rmsEps],
  ['f32', c.ropeBase],
  ['u32', c.yarn ? 1 : 0],
  ['f32', c.yarn?.factor ?? 1],
  ['f32', c.yarn?.originalContext ?? 0],
  ['f32', c.yarn?.betaFast ?? 0],
  ['f32', c.yarn?.betaSlow ?? 0],
  ['f32', c.yarn?.magnitude ?? 1],
  ['f32', c.yarn?.attentionFactor ?? 1],
];

const limitFields = (l: EngineLimits): Field[] => [
  ['u32', l.ranks],
  ['u32', l.batchTokens],
  ['u32', l.batchOutputs],
  ['u32', l.batchSequences],
  ['u32', l.pages],
  ['u32', l.pageTokens],
  ['u32', l.context],
  ['u32', l.exact === 'bf16' ? 2 : Number(l.exact)],
  ['u32', l.spins],
  ['u32', l.taps ? 1 : 0],
  ['u32', l.expertsOnly ? 1 : 0],
];

/** Writes both structs at `address`; returns where each begins and where they end. */
export function writeConfig(
  memory: ArrayBufferLike,
  address: number,
  config: ModelConfig,
  limits: EngineLimits,
): { config: number; limits: number; end: number } {
  const view = new DataView(memory, address);
  const all = configFields(config);
  const limitsAt = all.length * 4;
  all.push(...limitFields(limits));
  all.forEach(([kind, value], index) => {
    if (kind === 'u32') view.setUint32(index * 4, value, true);
    else view.setFloat32(index * 4, value, true);
  });
  return { config: address, limits: address + limitsAt, end: address + all.length * 4 };
}

/** StepBlock of engine/engine.h: three counts, a stride, then addresses (32-bit under WebAssembly). */
export const stepFields = {
  tokensCount: 0,
  outputsCount: 1,
  sequencesCount: 2,
  tableStride: 3,
  tokens: 4,
  positions: 5,
  sequences: 6,
  pageTables: 7,
  outputs: 8,
  logits: 9,
} as const;
export const stepWords = 10;

/**
 * Exchange of engine/exchange.h: three words, each on its own lines, then addresses (32-bit under WebAssembly) and the bytes
 * of the whole.
 */
export const exchangeWords = { asked: 0, done: 128, failed: 256 } as const;
export const exchangeArraysAt = 384;
export const exchangeArrays = ['h', 'chosen', 'weight', 'sum'] as const;

/** Location of engine/engine.h: u64 address, u32 shard, u32 reserved. */
export const locationBytes = 16;
