/** Whether a model fits in memory: what it needs, group by group, beside what there is, and what to change if it does not. */
import { perigeeError } from '../errors.ts';
import { elementCount, formatBytes } from '../gguf/sizes.ts';
import type { GgufTensor } from '../gguf/types.ts';
import { availableMemory } from '../select/available-memory.ts';
import type { ModelConfig } from './config.ts';
import type { ModelTensors, Slot } from './tensors.ts';

export const weightGroups = ['routed experts', 'attention', 'shared and dense', 'embedding and head'] as const;
export type WeightGroup = (typeof weightGroups)[number];

export interface MemoryUse {
  /** Positions each sequence may have, and how many sequences are kept at once. */
  readonly contextTokens: number;
  readonly sequences: number;
  /** Most tokens of one step. */
  readonly batchTokens: number;
}

export interface MemoryTable {
  readonly lines: readonly { readonly name: string; readonly bytes: number; readonly detail: string }[];
  readonly need: number;
  readonly available: number;
  readonly fits: boolean;
  /** The smallest change that makes it fit; empty when it does. */
  readonly advice: string;
}

export function weightGroup(slot: Slot): WeightGroup {
  if (slot === 'token_embd' || slot === 'output' || slot === 'output_norm') return 'embedding and head';
  if (slot.endsWith('_exps') || slot === 'ffn_gate_inp' || slot === 'exp_probs_b') return 'routed experts';
  return slot.startsWith('attn_') ? 'attention' : 'shared and dense';
}

/** Every tensor the engine holds, with its slot. */
export function* slotTensors(tensors: ModelTensors): Generator<readonly [Slot, GgufTensor]> {
  const { layers, ...globals } = tensors;
  yield* Object.entries(globals) as [Slot, GgufTensor][];
  for (const layer of layers) yield* Object.entries(layer) as [Slot, GgufTensor][];
}

/**
 * Bytes in memory: those of the file, but for the key half of an old attn_kv_b, which is kept transposed as float32. Native code
 * maps them from the file where WebAssembly copies them; they must fit all the same, for pages that are dropped are read from
 * the disk again for every token.
 */
function heldBytes(slot: Slot, tensor: GgufTensor, config: ModelConfig): number {
  if (slot !== 'attn_kv_b') return tensor.bytes;
  const keyShare = config.nopeDim / (config.nopeDim + config.valueDim);
  return tensor.bytes * (1 - keyShare) + elementCount(tensor.shape) * keyShare * 4;
}

/** Bytes of the latent cache per position: float32 latent and roped key in every layer. */
export function cacheBytesPerToken(config: ModelConfig): number {
  return config.layers * (config.kvRank + config.ropeDim) * 4;
}

/** Floats of the widest moment of each stage for one token; an estimate within a factor of 2. */
function activationFloats(config: ModelConfig): number {
  const query = config.heads * (2 * config.nopeDim + 2 * config.ropeDim + 2 * config.kvRank + config.valueDim);
  const routed =
    config.expertsUsed * (2 * config.expertWidth + config.hidden) + 2 * config.sharedWidth + config.experts;
  return 4 * config.hidden + query + Math.max(2 * config.denseWidth, routed);
}

/** What the model needs in memory against what there is. */
export function memoryTable(
  config: ModelConfig,
  tensors: ModelTensors,
  use: MemoryUse,
  available: number = availableMemory(),
): MemoryTable {
  const groups = new Map<WeightGroup, number>(weightGroups.map((group) => [group, 0]));
  for (const [slot, tensor] of slotTensors(tensors)) {
    const group = weightGroup(slot);
    groups.set(group, (groups.get(group) ?? 0) + heldBytes(slot, tensor, config));
  }
  const weights = [...groups.values()].reduce((sum, bytes) => sum + bytes, 0);
  const perToken = cacheBytesPerToken(config);
  const cache = perToken * use.contextTokens * use.sequences;
  const activations = use.batchTokens * activationFloats(config) * 4;
  const times = use.sequences === 1 ? '' : ` x ${use.sequences} sequences`;
  const lines = [
    ...[...groups].map(([name, bytes]) => ({ name, bytes, detail: 'weights' })),
    {
      name: 'KV cache',
      bytes: cache,
      detail: `${formatBytes(perToken)} a token x ${use.contextTokens} tokens${times}`,
    },
    { name: 'activations', bytes: activations, detail: `steps of up to ${use.batchTokens} tokens` },
  ];
  const need = weights + cache + activations;
  const fits = need <= available;
  const spare = available - weights - activations;
  return { lines, need, available, fits, advice: fits ? '' : advise(use, spare / perToken, weights, available) };
}

/** Contexts are offered in steps of 256; below one step a model is no use. */
const contextStep = 256;

function advise(use: MemoryUse, spareTokens: number, weights: number, available: number): string {
  const context = Math.floor(spareTokens / use.sequences / contextStep) * contextStep;
  if (context >= contextStep) return `Use --context ${Math.min(context, use.contextTokens)}: that much fits.`;
  if (spareTokens >= contextStep) return 'Keep fewer sequences at once: one fits.';
  const missing = formatBytes(weights - available * 0.95);
  const target = formatBytes(available * 0.95);
  return `Its weights alone need about ${missing} more than there is: free memory, or take a quantization of at most ${target}.`;
}

/** The table for people. */
export function renderMemoryTable(table: MemoryTable): string {
  const rows = [
    ...table.lines.map((line) => [line.name, formatBytes(line.bytes), line.detail] as const),
    ['total', formatBytes(table.need), ''] as const,
    ['available', formatBytes(table.available), table.fits ? 'it fits' : 'it does not fit'] as const,
  ];
  const names = Math.max(...rows.map(([name]) => name.length));
  const sizes = Math.max(...rows.map(([, size]) => size.length));
  return rows
    .map(([name, size, detail]) => `${name.padEnd(names)}  ${size.padStart(sizes)}  ${detail}`.trimEnd())
    .join('\n');
}

/** Throws MODEL_DOES_NOT_FIT, with the table and the smallest change that fits, unless everything fits. */
export function assertFits(table: MemoryTable): void {
  if (table.fits) return;
  throw perigeeError('MODEL_DOES_NOT_FIT', {
    need: formatBytes(table.need),
    have: formatBytes(table.available),
    table: renderMemoryTable(table),
    advice: table.advice,
  });
}
