/** From a placement to what the ranks load: shards with their pieces, and the addresses of every matrix. */

import { jobBytes, type Shard } from '../../wasm/rank-task.ts';
import { alignUp } from '../gguf/sizes.ts';
import type { GgufTensor } from '../gguf/types.ts';
import type { ModelConfig } from '../model/config.ts';
import { type Binding, type Placed, planExperts, planRank } from '../model/plan.ts';
import type { SyntheticRecipe } from '../model/synthetic-blocks.ts';
import type { ModelTensors } from '../model/tensors.ts';
import type { Piece } from './pieces.ts';

/** How to make each tensor of a synthetic model; null: the bytes are in files. */
export type Recipes = ReadonlyMap<string, SyntheticRecipe> | null;

export interface PlacedRank {
  readonly bindings: readonly Binding[];
  readonly shards: readonly Shard[];
}

/** What ranks hold: a model, or its routed experts for a device that runs the rest. */
export type Role = 'model' | 'experts';

export const planFor = (role: Role) => (role === 'experts' ? planExperts : planRank);

/** One WebAssembly memory's most bytes. */
export const memoryLimit = 2 ** 32;

/** What a shard holds beside weights, and how large it may be. */
export interface ShardRoom {
  /** Where the module's own data and stack end. */
  readonly begin: number;
  /** Bytes of the input and output regions of a call. */
  readonly call: { readonly input: number; readonly output: number };
  readonly batchTokens: number;
  /** Most bytes of one weight memory. */
  readonly most: number;
}

/** Places every rank. Each shard begins with the module's data and stack, then a region for calls, then weights. */
export function placeShards(
  config: ModelConfig,
  tensors: ModelTensors,
  recipes: Recipes,
  role: Role,
  ranks: number,
  room: ShardRoom,
): PlacedRank[] {
  const jobsAddress = alignUp(room.begin, 64);
  const mostJobs = Math.max(room.batchTokens, 2 * config.experts, config.heads) + 4; // job_capacity of engine/sizes.cc
  const inputAddress = alignUp(jobsAddress + mostJobs * jobBytes, 64);
  const outputAddress = alignUp(inputAddress + room.call.input, 64);
  const space = { begin: alignUp(outputAddress + room.call.output, 64), end: room.most };
  return Array.from({ length: ranks }, (_, rank) => {
    const plan = planFor(role)(config, tensors, rank, ranks, space);
    const pieces: Piece[][] = plan.shardBytes.map(() => []);
    for (const binding of plan.bindings) {
      if (binding.slot === 'output' && !tensors.output) continue; // the embedding's bytes, placed already
      for (const placed of binding.matrices) {
        if (placed.bytes > 0) addPiece(pieces[placed.shard] as Piece[], pieceOf(placed, recipes));
      }
    }
    const shards = plan.shardBytes.map((memoryBytes, index) => ({
      memoryBytes,
      memory: null,
      pieces: pieces[index] as Piece[],
      jobsAddress,
      inputAddress,
      outputAddress,
    }));
    return { bindings: plan.bindings, shards };
  });
}

/** How the bytes of one matrix come to their address. */
export function pieceOf(placed: Placed, recipes: Recipes): Piece {
  const { tensor, address, bytes, transposed } = placed;
  const offset = tensor.offset + placed.offset;
  const recipe = recipes?.get(tensor.name);
  if (transposed) return { kind: 'transposed', file: tensor.file, offset, type: tensor.type, ...transposed, address };
  if (recipe) return { kind: 'synthetic', recipe, offset: placed.offset, bytes, address };
  return { kind: 'file', file: tensor.file, offset, bytes, address };
}

/** Appends a piece, joined to the last one where both file and memory go on without a gap. */
function addPiece(pieces: Piece[], piece: Piece): void {
  const last = pieces.at(-1);
  if (
    last?.kind === 'file' &&
    piece.kind === 'file' &&
    last.file === piece.file &&
    last.offset + last.bytes === piece.offset &&
    last.address + last.bytes === piece.address
  ) {
    pieces[pieces.length - 1] = { ...last, bytes: last.bytes + piece.bytes };
    return;
  }
  pieces.push(piece);
}

function allTensors(tensors: ModelTensors): GgufTensor[] {
  const layers = tensors.layers.flatMap((layer) => Object.values(layer));
  return [tensors.token_embd, tensors.output_norm, ...(tensors.output ? [tensors.output] : []), ...layers];
}

const isOfExperts = (slot: string) => slot.endsWith('_exps');

/** Bytes of the weights that a role holds. */
export function weightBytes(tensors: ModelTensors, role: Role = 'model'): number {
  const experts = () =>
    tensors.layers.flatMap((layer) =>
      Object.entries(layer).flatMap(([slot, tensor]) => (isOfExperts(slot) ? [tensor] : [])),
    );
  return (role === 'experts' ? experts() : allTensors(tensors)).reduce((sum, tensor) => sum + tensor.bytes, 0);
}

/** Bytes of weights that one decoded token reads: all matrices but the embedding table, and of the experts the chosen ones. */
export function activeBytes(config: ModelConfig, tensors: ModelTensors): number {
  const { experts, expertsUsed, vocabulary } = config;
  const row = tensors.token_embd.bytes / vocabulary;
  let bytes = row + (tensors.output ?? tensors.token_embd).bytes + tensors.output_norm.bytes;
  for (const layer of tensors.layers) {
    for (const [slot, tensor] of Object.entries(layer)) {
      bytes += isOfExperts(slot) ? (tensor.bytes / experts) * expertsUsed : tensor.bytes;
    }
  }
  return bytes;
}
