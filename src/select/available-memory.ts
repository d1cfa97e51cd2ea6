/** How much memory this process may still take, containers counted. */
import { freemem, totalmem } from 'node:os';
import { type ReadText, readText } from './topology.ts';

export interface MemoryProbe {
  /** The container's limit and what it leaves, in bytes, as Node reports them. */
  readonly constrained: number;
  readonly available: number;
  /** MemAvailable of the machine: it counts file cache as free. */
  readonly machineFree: number;
  readonly machineTotal: number;
  readonly readText: ReadText;
}

function thisMachine(): MemoryProbe {
  return {
    constrained: process.constrainedMemory(),
    available: process.availableMemory(),
    machineFree: freemem(),
    machineTotal: totalmem(),
    readText,
  };
}

/** File cache charged to this process's control group: a model just downloaded fills it, yet it gives way at once. */
function fileCache(probe: MemoryProbe): number {
  const groups = probe.readText('/proc/self/cgroup') ?? '';
  const unified = /^0::(\/.*)$/m.exec(groups)?.[1] ?? '/';
  const memory = /^\d+:memory:(\/.*)$/m.exec(groups)?.[1] ?? '/';
  const root = '/sys/fs/cgroup';
  const folders = [`${root}/memory${memory}`, `${root}/memory`, `${root}${unified}`, root];
  const stat = folders.map((folder) => probe.readText(`${folder}/memory.stat`)).find((text) => text !== null) ?? '';
  const bytes = (name: string) => Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(stat)?.[1] ?? 0);
  return bytes('active_file') + bytes('inactive_file');
}

/** Bytes that can be allocated without swapping or meeting the container's limit. */
export function availableMemory(probe: MemoryProbe = thisMachine()): number {
  const limited = probe.constrained > 0 && probe.constrained < probe.machineTotal;
  if (!limited) return probe.available;
  return Math.min(probe.machineFree, probe.constrained, probe.available + fileCache(probe));
}
