/** What a model takes in memory, group by group: all on the CPU, or divided between devices and the CPU. */
import { alignUp, elementCount, rowBytes } from '../gguf/sizes.ts';
import { blockShapes, type GgmlTypeName, type GgufTensor } from '../gguf/types.ts';
import type { MemoryLine, MemoryNeed } from '../select/memory-table.ts';
import type { DeviceNeeds, ModelNeeds } from '../select/placement.ts';
import type { ModelConfig } from './config.ts';
import type { LayerTensors, ModelTensors, Slot } from './tensors.ts';

export const weightGroups = ['routed experts', 'attention', 'shared and dense', 'embedding and head'] as const;
export type WeightGroup = (typeof weightGroups)[number];

export interface MemoryUse {
  /** Positions each sequence may have, and how many sequences are kept at once. */
  readonly contextTokens: number;
  readonly sequences: number;
  /** Most tokens of one step. */
  readonly batchTokens: number;
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
 * Bytes in main memory: those of the file, but for the key half of an old attn_kv_b, which is kept transposed as float32. Native
 * code maps them from the file where WebAssembly copies them; they must fit all the same, for pages that are dropped are read
 * from the disk again for every token.
 */
function heldBytes(slot: Slot, tensor: GgufTensor, config: ModelConfig): number {
  if (slot !== 'attn_kv_b') return tensor.bytes;
  const keyShare = config.nopeDim / (config.nopeDim + config.valueDim);
  return tensor.bytes * (1 - keyShare) + elementCount(tensor.shape) * keyShare * 4;
}

/** Bytes of the latent cache per position on the CPU: float32 latent and roped key in every layer. */
export function cacheBytesPerToken(config: ModelConfig): number {
  return config.layers * (config.kvRank + config.ropeDim) * 4;
}

/** Floats of the widest moment of each stage for one token; an estimate within a factor of 2. */
function activationFloats(config: ModelConfig): number {
  const query = config.heads * (2 * config.nopeDim + 2 * config.ropeDim + 2 * config.kvRank + config.valueDim);
  return 4 * config.hidden + query + Math.max(2 * config.denseWidth, expertFloats(config) + 2 * config.sharedWidth);
}

const expertFloats = (config: ModelConfig) =>
  config.expertsUsed * (2 * config.expertWidth + config.hidden) + config.experts;

/** What the model takes each way it can be placed. */
export function modelNeeds(config: ModelConfig, tensors: ModelTensors, use: MemoryUse): ModelNeeds {
  const groups = new Map<WeightGroup, number>(weightGroups.map((group) => [group, 0]));
  let routed = 0;
  for (const [slot, tensor] of slotTensors(tensors)) {
    const group = weightGroup(slot);
    groups.set(group, (groups.get(group) ?? 0) + heldBytes(slot, tensor, config));
    if (slot.endsWith('_exps')) routed += tensor.bytes;
  }
  const activations = (floats: number): MemoryLine => ({
    name: 'activations',
    bytes: use.batchTokens * floats * 4,
    detail: `steps of up to ${use.batchTokens} tokens`,
  });
  const weights = [...groups].map(([name, bytes]) => ({ name, bytes, detail: 'weights' }));
  const cpu: MemoryNeed = {
    lines: [...weights, activations(activationFloats(config))],
    cache: { bytesPerToken: cacheBytesPerToken(config), contextTokens: use.contextTokens, sequences: use.sequences },
  };
  const ranks: MemoryNeed = {
    lines: [
      { name: 'routed experts', bytes: routed, detail: 'weights' },
      activations(2 * config.hidden + expertFloats(config)),
    ],
    cache: null,
  };
  return { cpu, ranks, device: deviceNeeds(config, tensors, use) };
}

function deviceNeeds(config: ModelConfig, tensors: ModelTensors, use: MemoryUse): DeviceNeeds {
  const isExpert = (slot: string) => slot.endsWith('_exps');
  const held = (layer: LayerTensors, wanted: (slot: string) => boolean) =>
    (Object.entries(layer) as [Slot, GgufTensor][])
      .filter(([slot]) => wanted(slot))
      .reduce((sum, [slot, tensor]) => sum + packedBytes(slot, tensor, config), 0);
  const { token_embd: embedding, output_norm: norm, output: head = embedding } = tensors;
  return {
    layers: tensors.layers.map((layer) => ({
      dense: held(layer, (slot) => !isExpert(slot)) + headBytes(config, use),
      expert: config.experts === 0 ? 0 : held(layer, isExpert) / config.experts,
    })),
    experts: config.experts,
    // Rows are looked up in the file's own blocks.
    embedding: embedding.bytes,
    head: packedBytes('output', head, config) + norm.bytes,
    latents: {
      bytesPerToken: (config.kvRank + config.ropeDim) * bf16Bytes,
      contextTokens: use.contextTokens,
      sequences: use.sequences,
    },
    work: workBytes(config, use),
    streaming: config.experts === 0 ? 0 : streamingBytes(config, use),
    unsupported: unsupportedWidth(config),
  };
}

const bf16Bytes = 2;
/** Tiles of native/cuda/matrix_format.cuh: rows and columns are padded to whole ones. */
const tileRows = 16;
/** Types whose own blocks are repacked; others become an int8 a value, with a float scale and minimum for 16 values. */
const packedNatively: readonly GgmlTypeName[] = ['Q4_K', 'Q5_K', 'Q6_K', 'Q8_0', 'Q4_0', 'Q5_0'];
const genericBytesPerValue = 1 + 8 / 16;

/** Bytes on a device. */
function packedBytes(slot: Slot, tensor: GgufTensor, config: ModelConfig): number {
  const { type, shape, bytes } = tensor;
  const [columns = 1, rows = 1, count = 1] = shape;
  if (slot === 'attn_kv_b') return heldBytes(slot, tensor, config);
  if (shape.length === 1 || blockShapes[type].elements === 1) return bytes;
  const padded = alignUp(columns, type.endsWith('_K') ? 256 : 128);
  const perRow = packedNatively.includes(type) ? rowBytes(type, padded) : padded * genericBytesPerValue;
  return count * alignUp(rows, tileRows) * perRow;
}

/** Steps of more tokens than this hold a prompt, which attends by matrix products with keys and values as bf16. */
const shortRun = 64;
/** Prompts expand the latents of this many positions at a time. */
const keyChunk = 8192;
/** Most tokens that meet the dense and shared networks at once. */
const networkRows = 2048;
/** Routed experts that are multiplied together in long steps. */
const expertsTogether = 8;
/** Experts on their way from main memory: what the bus brings while the device computes something else. */
const passingBytesPerToken = 2 ** 17;
const mostPassingBytes = 2 ** 33;
/** Float, bf16, and for few rows int8. */
const rowForms = 4 + bf16Bytes;

/** The key and value halves of all heads once more, as prompts read them. */
function headBytes({ heads, nopeDim, valueDim, kvRank }: ModelConfig, use: MemoryUse): number {
  return use.batchTokens > shortRun ? heads * (nopeDim + valueDim) * kvRank * bf16Bytes : 0;
}

/** Work space of one device, in the terms of native/cuda/part.cc, which asks for the exact bytes. */
function workBytes(config: ModelConfig, use: MemoryUse): number {
  const { hidden, heads, qRank, kvRank, nopeDim, ropeDim, valueDim, expertsUsed, expertWidth } = config;
  const t = use.batchTokens;
  const keys = Math.min(keyChunk, use.contextTokens) * (kvRank + ropeDim + heads * (nopeDim + valueDim)) * bf16Bytes;
  const query = heads * (nopeDim + ropeDim);
  const rows =
    t * (rowForms * (hidden + qRank + heads * valueDim + query) + 4 * (2 * hidden + kvRank + config.experts));
  const latents = Math.min(t, 256) * heads * (2 * kvRank + ropeDim) * 4;
  const widest = Math.max(config.denseWidth, config.sharedWidth);
  const networks = Math.min(t, networkRows) * widest * (rowForms + 2 * 4);
  const unpacked = Math.max(query * (qRank || hidden), widest * hidden, heads * valueDim * hidden) * bf16Bytes;
  const routed = t * expertsUsed * (3 * expertWidth + hidden) * bf16Bytes + groupBytes(config);
  return attentionSplits + rows + latents + keys + networks + unpacked + (config.experts > 0 ? routed : 0);
}

/** What the parts of a divided attention leave behind, on the largest devices. */
const attentionSplits = 64 << 20;

const groupBytes = ({ hidden, expertWidth }: ModelConfig) => expertsTogether * 3 * hidden * expertWidth * bf16Bytes;

/** Two groups of experts at least, a layer and a group at most, and one matrix as it comes. */
function streamingBytes(config: ModelConfig, { batchTokens }: MemoryUse): number {
  const group = groupBytes(config);
  const groups = Math.ceil(config.experts / expertsTogether);
  const wanted = Math.min(batchTokens * passingBytesPerToken, mostPassingBytes);
  const ring = Math.min(Math.max(wanted, 2 * group), (groups + 1) * group);
  return ring + config.hidden * config.expertWidth * bf16Bytes;
}

/** Kernels take 32 values at a time. */
function unsupportedWidth(config: ModelConfig): string | null {
  const widths = {
    'hidden width': config.hidden,
    'query rank': config.qRank,
    'latent rank': config.kvRank,
    'head width': config.nopeDim,
    'rotated width': config.ropeDim,
    'value width': config.valueDim,
    'dense width': config.denseWidth,
    'expert width': config.expertWidth,
    'shared width': config.sharedWidth,
  };
  const odd = Object.entries(widths).find(([, width]) => width % 32 !== 0);
  return odd === undefined ? null : `its kernels need widths that are multiples of 32, and the ${odd[0]} is ${odd[1]}`;
}
