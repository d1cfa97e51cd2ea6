/** Which logical CPUs this process may use, and which of them are hyperthreads of one core. */
import { readFileSync } from 'node:fs';

export interface Topology {
  /** Cores of the whole machine, hyperthreads counted once. */
  readonly physicalCores: number;
  /** Logical CPUs this process may use, by physical core: [core][hyperthread], ascending. */
  readonly cpus: readonly (readonly number[])[];
}

/** The text of a file, or null where it does not exist. */
export type ReadText = (path: string) => string | null;

export function readText(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}

/** Linux' account of the machine; null where there is none. */
export function readTopology(read: ReadText = readText): Topology | null {
  const online = cpuList(read('/sys/devices/system/cpu/online'));
  const allowed = new Set(cpuList(/^Cpus_allowed_list:\s*(\S+)$/m.exec(read('/proc/self/status') ?? '')?.[1] ?? null));
  // CPUs of one core name the same siblings, whether this process may use all of them or not.
  const cores = new Map<string, number[]>();
  for (const cpu of online) {
    const siblings = read(`/sys/devices/system/cpu/cpu${cpu}/topology/thread_siblings_list`);
    if (siblings === null) return null;
    cores.set(siblings, [...(cores.get(siblings) ?? []), cpu]);
  }
  const cpus = [...cores.values()].map((core) => core.filter((cpu) => allowed.has(cpu)));
  const usable = cpus.filter((core) => core.length > 0);
  return usable.length === 0 ? null : { physicalCores: cores.size, cpus: usable };
}

/** The kernel's notation: "0-3,8,10-11". */
function cpuList(text: string | null): number[] {
  const ranges = text?.trim().split(',').filter(Boolean) ?? [];
  return ranges.flatMap((range) => {
    const [first = 0, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
}
