/** What the runtime tells a rank to load and where the two meet; plain data, memories and one compiled module. */
import type { Piece } from '../src/runtime/pieces.ts';

/** One weight memory. Addresses count from its first byte, which the module's own data and stack occupy. */
export interface Shard {
  readonly memoryBytes: number;
  /** Null: the rank makes it, and it is gone with the rank. Memories that others read as well are made for it. */
  readonly memory: WebAssembly.Memory | null;
  readonly pieces: readonly Piece[];
  /** Where a call's jobs, activations and results lie in this memory. */
  readonly jobsAddress: number;
  readonly inputAddress: number;
  readonly outputAddress: number;
}

/** Bytes of a Job of engine/job.h. */
export const jobBytes = 48;

/** Words of the control block, an Int32Array in the state memory. */
export const Control = { Sequence: 0, Finished: 1, Done: 2, Quit: 3, Loaded: 4, FirstRank: 16 } as const;
/** Per rank, from FirstRank on: KiB loaded so far. */
export const controlWords = (ranks: number): number => Control.FirstRank + ranks;

export interface RankTask {
  readonly rank: number;
  readonly ranks: number;
  readonly module: WebAssembly.Module;
  /** Index of the kernel table in the module. */
  readonly isaIndex: number;
  readonly state: WebAssembly.Memory;
  /** Top of this rank's stack in the state memory. */
  readonly stackTop: number;
  readonly engine: number;
  /** Byte offset of the control block in the state memory. */
  readonly control: number;
  /** Byte offset of this rank's stage times, float64 milliseconds. */
  readonly stageTimes: number;
  readonly files: readonly string[];
  readonly shards: readonly Shard[];
}
