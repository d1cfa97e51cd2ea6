/** Fills one weight memory: file ranges are read straight into place, several at a time. */
import { GgmlType } from '../src/gguf/types.ts';
import { withFiles } from '../src/runtime/model-files.ts';
import { chunksOf, type Dequantize, fillPiece, placedBytes } from '../src/runtime/pieces.ts';
import { type CoreExports, instantiate, sharedMemory } from './core.ts';
import type { Shard } from './rank-task.ts';

/** Measured on a page-cached file: four reads in flight reach twice the speed of one, more gain nothing. */
const readsInFlight = 4;

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
  const memory = shard.memory ?? sharedMemory(shard.memoryBytes);
  const core = instantiate(module, memory);
  const bytes = new Uint8Array(memory.buffer);
  // The call regions serve here; no other chunk touches them before the result has been used: that is synchronous.
  const dequantize: Dequantize = (type, raw, rows, columns) => {
    bytes.set(raw, shard.inputAddress);
    core.dequantize_rows(GgmlType[type], shard.inputAddress, rows, columns, shard.outputAddress);
    return new Float32Array(memory.buffer, shard.outputAddress, rows * columns);
  };
  await withFiles(files, async (opened) => {
    const chunks = chunksOf(shard.pieces);
    const worker = async (): Promise<void> => {
      for (let next = chunks.next(); !next.done; next = chunks.next()) {
        const piece = next.value;
        const target = bytes.subarray(piece.address, piece.address + placedBytes(piece));
        onBytes(await fillPiece(piece, target, opened, dequantize));
      }
    };
    await Promise.all(Array.from({ length: readsInFlight }, worker));
  });
  return { core, bytes, shard };
}
