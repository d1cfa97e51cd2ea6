/** How many ranks, and which CPU each is pinned to. */
import { perigeeError } from '../errors.ts';
import type { Machine } from './machine.ts';
import type { RankKind } from './tables.ts';

/** Ranks are a byte in the core's tables, and no machine gains from more. */
export const mostThreads = 256;

export interface Ranks {
  readonly count: number;
  /** The CPU of each rank; null: where the system puts it. */
  readonly cpus: readonly number[] | null;
  readonly why: string;
}

/** WebAssembly ranks are workers, which cannot be pinned; native ones are threads, which gain nothing from hyperthreads. */
export function chooseRanks(machine: Machine, kind: RankKind, wish: number | undefined): Ranks {
  const { count, why } = wish === undefined ? defaultCount(machine, kind) : wishedCount(machine, wish);
  if (kind === 'wasm') return { count, cpus: null, why };
  const pinning = pin(machine, count);
  return { count, cpus: pinning.cpus, why: `${why}; ${pinning.why}` };
}

interface Count {
  readonly count: number;
  readonly why: string;
}

function defaultCount({ cores, physicalCores, cpus }: Machine, kind: RankKind): Count {
  if (kind === 'wasm' || cpus === null) {
    const all = physicalCores === cores ? '' : `; the machine has ${physicalCores} cores`;
    return { count: Math.min(cores, mostThreads), why: `one for each available hardware thread${all}` };
  }
  const all = physicalCores === cpus.length ? '' : ` of the machine's ${physicalCores}`;
  // A quota may allow fewer threads at once than there are CPUs to run them on.
  if (cores < cpus.length)
    return { count: Math.min(cores, mostThreads), why: `one for each core's worth of the quota` };
  return { count: Math.min(cpus.length, mostThreads), why: `one for each available core${all}` };
}

function wishedCount({ cores }: Machine, wish: number): Count {
  if (!Number.isInteger(wish) || wish < 1 || wish > mostThreads) {
    throw perigeeError('OPTION_INVALID', {
      option: '--threads',
      value: `${wish}`,
      expected: `a whole number from 1 to ${mostThreads}`,
    });
  }
  const crowded = wish > cores ? '; more than cores, so ranks wait for each other' : '';
  return { count: wish, why: `as asked for by --threads${crowded}` };
}

/** One core each, then their hyperthreads. Only ranks that fill the machine are pinned: others would all choose core 0. */
function pin({ cores, cpus }: Machine, count: number): Pick<Ranks, 'cpus' | 'why'> {
  if (cpus === null) return { cpus: null, why: 'not pinned, since the system does not tell which CPUs share a core' };
  const all = cpus.flat();
  if (cores < all.length) return { cpus: null, why: `not pinned, since a quota shares ${all.length} CPUs with others` };
  if (count > all.length) return { cpus: null, why: 'not pinned' };
  if (count < cpus.length) return { cpus: null, why: 'not pinned, so that other processes find the free cores' };
  const widest = Math.max(...cpus.map((core) => core.length));
  const order = Array.from({ length: widest }, (_, thread) => cpus.flatMap((core) => core[thread] ?? []));
  return { cpus: order.flat().slice(0, count), why: 'each pinned to a CPU' };
}
