/** The machine as plain data: everything the selector may know. */
import { availableParallelism, cpus, totalmem } from 'node:os';
import { availableMemory } from './available-memory.ts';
import { readTopology } from './topology.ts';
import { type WasmFeatures, wasmFeatures } from './wasm-features.ts';

/** The native addon's answer: its kernel tables that pass the self-check here, fastest first, and why the others do not. */
export type NativeSupport =
  | { readonly available: true; readonly isas: readonly string[]; readonly refused: Readonly<Record<string, string>> }
  | { readonly available: false; readonly why: string };

export interface CudaDevice {
  readonly index: number;
  readonly name: string;
  /** Compute capability, such as 9.0. */
  readonly capability: string;
  readonly memoryBytes: number;
  readonly freeBytes: number;
  readonly multiprocessors: number;
  readonly cacheBytes: number;
}

/** What the addon says about GPUs; `why` is a reason for people. */
export type CudaSupport =
  | { readonly available: true; readonly devices: readonly CudaDevice[] }
  | { readonly available: false; readonly why: string };

export interface Machine {
  readonly cpu: string;
  readonly platform: string;
  readonly node: string;
  /** Threads this process may run at once: affinity and container quota count. */
  readonly cores: number;
  /** Cores of the whole machine, hyperthreads counted once. */
  readonly physicalCores: number;
  /** Logical CPUs this process may use, by physical core; null where the system does not tell. */
  readonly cpus: readonly (readonly number[])[] | null;
  readonly memoryTotal: number;
  /** Bytes that can be allocated without swapping. */
  readonly memoryAvailable: number;
  readonly wasm: WasmFeatures;
  readonly native: NativeSupport;
  readonly cuda: CudaSupport;
}

/** Records this machine. `native` and `cuda` are what src/runtime found: loading an addon is not this folder's business. */
export function detectMachine(native: NativeSupport, cuda: CudaSupport): Machine {
  const all = cpus();
  const topology = readTopology();
  return {
    cpu: all[0]?.model.trim() || 'unknown CPU',
    platform: `${process.platform} ${process.arch}`,
    node: process.versions.node,
    cores: availableParallelism(),
    physicalCores: topology?.physicalCores ?? all.length,
    cpus: topology?.cpus ?? null,
    memoryTotal: Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY),
    memoryAvailable: availableMemory(),
    wasm: wasmFeatures(),
    native,
    cuda,
  };
}
