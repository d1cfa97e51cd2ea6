/** Fills one weight memory: file ranges are read straight into place, several at a time. */
import { tensorBytes } from '../src/gguf/sizes.ts';
import { GgmlType } from '../src/gguf/types.ts';
import { fillSynthetic } from '../src/model/synthetic-blocks.ts';
import { type CoreExports, instantiate, sharedMemory } from './core.ts';
import { type OpenFile, readFully, withFiles } from './model-files.ts';
import type { Piece, Shard } from './rank-task.ts';

/** Measured on a page-cached file: four reads in flight reach twice the speed of one, more gain nothing. */
const readsInFlight = 4;
const chunkBytes = 16 << 20;

export interface LoadedShard {
  readonly core: CoreExports;
  readonly bytes: Uint8Array;
  readonly shard: Shard;
}

/** Loads a shard; `onBytes` hears of every chunk that has arrived. */
export async function loadShard(
  module: WebAssembly.Module,
  shard: Shard,
  files: readonly string[],
  onBytes: (count: number) => void,
): Promise<LoadedShard> {
  const memory = sharedMemory(shard.memoryBytes);
  const core = instantiate(module, memory);
  const bytes = new Uint8Array(memory.buffer);
  await withFiles(files, async (opened) => {
    const chunks = chunksOf(shard.pieces);
    const worker = async (): Promise<void> => {
      for (let next = chunks.next(); !next.done; next = chunks.next()) {
        onBytes(await loadPiece(next.value, shard, core, bytes, opened));
      }
    };
    await Promise.all(Array.from({ length: readsInFlight }, worker));
  });
  return { core, bytes, shard };
}

/** Pieces cut into chunks small enough to report progress by. */
function* chunksOf(pieces: readonly Piece[]): Generator<Piece, undefined> {
  for (const piece of pieces) {
    if (piece.kind !== 'file') {
      yield piece;
      continue;
    }
    for (let done = 0; done < piece.bytes; done += chunkBytes) {
      const bytes = Math.min(chunkBytes, piece.bytes - done);
      yield { ...piece, bytes, offset: piece.offset + done, address: piece.address + done };
    }
  }
  return undefined;
}

/** Brings one chunk into place; returns the bytes it took from the model. */
async function loadPiece(
  piece: Piece,
  shard: Shard,
  core: CoreExports,
  memory: Uint8Array,
  files: readonly OpenFile[],
): Promise<number> {
  if (piece.kind === 'synthetic') {
    fillSynthetic(piece.recipe, piece.offset, memory.subarray(piece.address, piece.address + piece.bytes));
    return piece.bytes;
  }
  if (piece.kind === 'file') {
    await readFully(
      files[piece.file] as OpenFile,
      memory.subarray(piece.address, piece.address + piece.bytes),
      piece.offset,
    );
    return piece.bytes;
  }
  const bytes = tensorBytes(piece.type, [piece.columns, piece.rows]);
  const raw = new Uint8Array(bytes);
  await readFully(files[piece.file] as OpenFile, raw, piece.offset);
  // No other chunk touches the call regions or runs between here and the end: the work below is synchronous.
  memory.set(raw, shard.inputAddress);
  core.dequantize_rows(GgmlType[piece.type], shard.inputAddress, piece.rows, piece.columns, shard.outputAddress);
  const from = new Float32Array(memory.buffer, shard.outputAddress, piece.rows * piece.columns);
  const to = new Float32Array(memory.buffer, piece.address, piece.rows * piece.columns);
  for (let row = 0; row < piece.rows; row++) {
    for (let column = 0; column < piece.columns; column++) {
      to[column * piece.rows + row] = from[row * piece.columns + column] as number;
    }
  }
  return bytes;
}
