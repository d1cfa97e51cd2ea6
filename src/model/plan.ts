/**
 * Placement: which rows of which tensor each rank holds, in which shard and at what address. Every matrix is split by output
 * rows (attention by heads), so a rank reads only its own bytes and results do not depend on the number of ranks.
 */
import { perigeeError } from '../errors.ts';
import { alignUp, rowBytes } from '../gguf/sizes.ts';
import type { GgmlTypeName, GgufTensor } from '../gguf/types.ts';
import type { ModelConfig } from './config.ts';
import type { LayerTensors, ModelTensors } from './tensors.ts';

/** The engine's matrix slots, in the order of engine/config.h. */
export const matrixSlots = [
  'token_embd',
  'output',
  'attn_q',
  'attn_q_a',
  'attn_q_b',
  'attn_kv_a',
  'attn_k_b',
  'attn_v_b',
  'attn_output',
  'ffn_gate',
  'ffn_up',
  'ffn_down',
  'ffn_gate_inp',
  'ffn_gate_exps',
  'ffn_up_exps',
  'ffn_down_exps',
  'ffn_gate_shexp',
  'ffn_up_shexp',
  'ffn_down_shexp',
] as const;
export type MatrixSlot = (typeof matrixSlots)[number];

/** Bytes of one matrix that one rank holds: a contiguous range of the tensor. */
export interface Placed {
  readonly tensor: GgufTensor;
  /** Byte offset within the tensor. */
  readonly offset: number;
  readonly bytes: number;
  readonly shard: number;
  readonly address: number;
  /** Set for the key half of an old-style kv_b: rows x columns of the tensor's type, stored transposed as float32. */
  readonly transposed: { readonly rows: number; readonly columns: number } | null;
}

/** One rank's part of one slot: `matrices` equal matrices of `rows` rows from `rowBegin` on. */
export interface Binding {
  readonly slot: MatrixSlot;
  readonly layer: number;
  readonly type: GgmlTypeName;
  readonly rowBegin: number;
  readonly rows: number;
  readonly columns: number;
  readonly matrices: readonly Placed[];
}

export interface RankPlan {
  readonly bindings: readonly Binding[];
  /** Bytes used of each shard, from address 0. */
  readonly shardBytes: readonly number[];
}

export interface ShardSpace {
  /** First free address of a shard and one past its last. */
  readonly begin: number;
  readonly end: number;
}

/** Rows are dealt in fours, as engine/sizes.h does (kRowMultiple); heads one by one. */
const rowMultiple = 4;
const matrixAlignment = 64;

/** The rows of `total` that `rank` of `ranks` owns; rank_range of engine/sizes.cc. */
export function rankRange(
  total: number,
  rank: number,
  ranks: number,
  multiple: number,
): { begin: number; end: number } {
  const units = Math.ceil(total / multiple);
  const at = (r: number) => Math.min(total, Math.floor((units * r) / ranks) * multiple);
  return { begin: at(rank), end: at(rank + 1) };
}

/** Places one rank's rows of the whole model into shards of the given space, layer after layer. */
export function planRank(
  config: ModelConfig,
  tensors: ModelTensors,
  rank: number,
  ranks: number,
  space: ShardSpace,
): RankPlan {
  const planner = new RankPlanner(config, rank, ranks, space);
  planner.rows('token_embd', 0, tensors.token_embd);
  if (tensors.output) planner.rows('output', 0, tensors.output);
  else planner.share('output', 'token_embd');
  for (const [index, layer] of tensors.layers.entries()) planner.layer(index, layer);
  return planner.finish();
}

/** The same of the routed experts alone. */
export function planExperts(
  config: ModelConfig,
  tensors: ModelTensors,
  rank: number,
  ranks: number,
  space: ShardSpace,
): RankPlan {
  const planner = new RankPlanner(config, rank, ranks, space);
  for (const [index, layer] of tensors.layers.entries()) planner.experts(index, layer);
  return planner.finish();
}

class RankPlanner {
  readonly #config: ModelConfig;
  readonly #rank: number;
  readonly #ranks: number;
  readonly #space: ShardSpace;
  readonly #bindings: Binding[] = [];
  readonly #shardEnds: number[];

  constructor(config: ModelConfig, rank: number, ranks: number, space: ShardSpace) {
    this.#config = config;
    this.#rank = rank;
    this.#ranks = ranks;
    this.#space = space;
    this.#shardEnds = [space.begin];
  }

  layer(index: number, layer: LayerTensors): void {
    const plain = (slot: MatrixSlot & keyof LayerTensors) => {
      const tensor = layer[slot];
      if (tensor) this.rows(slot, index, tensor);
    };
    for (const slot of ['attn_q_a', 'attn_kv_a'] as const) plain(slot);
    this.#heads(index, layer);
    for (const slot of ['attn_output', 'ffn_gate', 'ffn_up', 'ffn_down', 'ffn_gate_inp'] as const) plain(slot);
    this.experts(index, layer);
    for (const slot of ['ffn_gate_shexp', 'ffn_up_shexp', 'ffn_down_shexp'] as const) plain(slot);
  }

  /** The routed experts of a layer, if it has any. */
  experts(index: number, layer: LayerTensors): void {
    const { experts, expertWidth, hidden } = this.#config;
    const fused = layer.ffn_gate_up_exps;
    const gate = fused ?? layer.ffn_gate_exps;
    const up = fused ?? layer.ffn_up_exps;
    if (gate && up && layer.ffn_down_exps) {
      const height = fused ? 2 * expertWidth : expertWidth;
      this.#matrices('ffn_gate_exps', index, gate, experts, height, { first: 0, rows: expertWidth });
      this.#matrices('ffn_up_exps', index, up, experts, height, { first: fused ? expertWidth : 0, rows: expertWidth });
      this.#matrices('ffn_down_exps', index, layer.ffn_down_exps, experts, hidden, { first: 0, rows: hidden });
    }
  }

  /** A plain matrix: this rank's share of its rows. */
  rows(slot: MatrixSlot, layer: number, tensor: GgufTensor): void {
    const rows = tensor.shape[1] as number;
    this.#matrices(slot, layer, tensor, 1, rows, { first: 0, rows });
  }

  /** A slot that uses another's bytes: a head tied to the embedding. */
  share(slot: MatrixSlot, owner: MatrixSlot): void {
    const binding = this.#bindings.find((candidate) => candidate.slot === owner);
    if (binding) this.#bindings.push({ ...binding, slot });
  }

  finish(): RankPlan {
    return { bindings: this.#bindings, shardBytes: this.#shardEnds };
  }

  /** `count` stacked matrices of `height` rows each; of each, this rank's share of the rows in `part`. */
  #matrices(
    slot: MatrixSlot,
    layer: number,
    tensor: GgufTensor,
    count: number,
    height: number,
    part: { first: number; rows: number },
  ): void {
    const columns = tensor.shape[0] as number;
    const bytesPerRow = rowBytes(tensor.type, columns);
    const own = rankRange(part.rows, this.#rank, this.#ranks, rowMultiple);
    const rows = own.end - own.begin;
    this.#keepTogether(count * alignUp(rows * bytesPerRow, matrixAlignment));
    const matrices = Array.from({ length: count }, (_, index) =>
      this.#place(tensor, (index * height + part.first + own.begin) * bytesPerRow, rows * bytesPerRow),
    );
    this.#bindings.push({ slot, layer, type: tensor.type, rowBegin: own.begin, rows, columns, matrices });
  }

  /** The matrices that belong to heads: queries, and the absorbed key and value halves. */
  #heads(layer: number, tensors: LayerTensors): void {
    const { heads, qRank, kvRank, nopeDim, ropeDim, valueDim } = this.#config;
    const own = rankRange(heads, this.#rank, this.#ranks, 1);
    const count = own.end - own.begin;
    const perHead = (slot: MatrixSlot, tensor: GgufTensor, rows: number, stride: number, first: number) => {
      const columns = tensor.shape[0] as number;
      const bytesPerRow = rowBytes(tensor.type, columns);
      const matrices = Array.from({ length: count }, (_, index) =>
        this.#place(tensor, ((own.begin + index) * stride + first) * bytesPerRow, rows * bytesPerRow),
      );
      this.#bindings.push({ slot, layer, type: tensor.type, rowBegin: 0, rows, columns, matrices });
    };
    const query = qRank ? tensors.attn_q_b : tensors.attn_q;
    if (query) {
      const rows = nopeDim + ropeDim;
      const bytesPerRow = rowBytes(query.type, query.shape[0] as number);
      const placed = this.#place(query, own.begin * rows * bytesPerRow, count * rows * bytesPerRow);
      this.#bindings.push({
        slot: qRank ? 'attn_q_b' : 'attn_q',
        layer,
        type: query.type,
        rowBegin: own.begin * rows,
        rows: count * rows,
        columns: query.shape[0] as number,
        matrices: [placed],
      });
    }
    if (tensors.attn_k_b && tensors.attn_v_b) {
      perHead('attn_k_b', tensors.attn_k_b, kvRank, kvRank, 0);
      perHead('attn_v_b', tensors.attn_v_b, valueDim, valueDim, 0);
    } else if (tensors.attn_kv_b) {
      this.#transposedKeys(layer, tensors.attn_kv_b, own);
      perHead('attn_v_b', tensors.attn_kv_b, valueDim, nopeDim + valueDim, nopeDim);
    }
  }

  /** Old-style kv_b: the key rows of each head, stored [kvRank][nopeDim] as float32 (exact for every type). */
  #transposedKeys(layer: number, tensor: GgufTensor, own: { begin: number; end: number }): void {
    const { kvRank, nopeDim, valueDim } = this.#config;
    const bytesPerRow = rowBytes(tensor.type, kvRank);
    const matrices: Placed[] = [];
    for (let head = own.begin; head < own.end; head++) {
      const { shard, address } = this.#allocate(kvRank * nopeDim * Float32Array.BYTES_PER_ELEMENT);
      matrices.push({
        tensor,
        offset: head * (nopeDim + valueDim) * bytesPerRow,
        bytes: nopeDim * bytesPerRow,
        shard,
        address,
        transposed: { rows: nopeDim, columns: kvRank },
      });
    }
    this.#bindings.push({
      slot: 'attn_k_b',
      layer,
      type: 'F32',
      rowBegin: 0,
      rows: kvRank,
      columns: nopeDim,
      matrices,
    });
  }

  #place(tensor: GgufTensor, offset: number, bytes: number): Placed {
    return { tensor, offset, bytes, ...this.#allocate(bytes), transposed: null };
  }

  /** Begins a new shard if that holds `bytes` and the rest of the current one does not: a GPU takes a slot's experts from one. */
  #keepTogether(bytes: number): void {
    const { begin, end } = this.#space;
    if ((this.#shardEnds.at(-1) as number) + matrixAlignment + bytes > end && begin + bytes <= end)
      this.#shardEnds.push(begin);
  }

  /** The next free address; a new shard where the current one is full. */
  #allocate(bytes: number): { shard: number; address: number } {
    const last = this.#shardEnds.length - 1;
    const address = alignUp(this.#shardEnds[last] as number, matrixAlignment);
    if (address + bytes > this.#space.end) {
      if (this.#space.begin + bytes > this.#space.end) {
        throw perigeeError('MATRIX_TOO_LARGE', { bytes, most: this.#space.end - this.#space.begin });
      }
      this.#shardEnds.push(this.#space.begin);
      return this.#allocate(bytes);
    }
    this.#shardEnds[last] = address + bytes;
    return { shard: last, address };
  }
}
