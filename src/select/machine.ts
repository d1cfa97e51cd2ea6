/** The machine as plain data: everything the selector may know. */
import { readFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { availableMemory } from './available-memory.ts';
import { type WasmFeatures, wasmFeatures } from './wasm-features.ts';

export interface Machine {
  readonly cpu: string;
  readonly platform: string;
  readonly node: string;
  /** Threads this process may run at once: affinity and container quota count. */
  readonly cores: number;
  /** Cores of the whole machine, hyperthreads counted once. */
  readonly physicalCores: number;
  readonly memoryTotal: number;
  /** Bytes that can be allocated without swapping. */
  readonly memoryAvailable: number;
  readonly wasm: WasmFeatures;
}

/** Records this machine. */
export function detectMachine(): Machine {
  const all = cpus();
  return {
    cpu: all[0]?.model.trim() || 'unknown CPU',
    platform: `${process.platform} ${process.arch}`,
    node: process.versions.node,
    cores: availableParallelism(),
    physicalCores: physicalCores() ?? all.length,
    memoryTotal: Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY),
    memoryAvailable: availableMemory(),
    wasm: wasmFeatures(),
  };
}

/** Distinct (package, core) pairs of /proc/cpuinfo; null where there is none. */
function physicalCores(): number | null {
  let text: string;
  try {
    text = readFileSync('/proc/cpuinfo', 'utf8');
  } catch {
    return null;
  }
  const found = new Set<string>();
  for (const block of text.split('\n\n')) {
    const id = (name: string) => new RegExp(`^${name}\\s*: (\\d+)$`, 'm').exec(block)?.[1];
    const core = id('core id');
    if (core !== undefined) found.add(`${id('physical id')}:${core}`);
  }
  return found.size || null;
}
