/** The choice of backend, kernels and ranks, with its reasons. Pure: the same machine and wishes give the same plan. */
import { perigeeError } from '../errors.ts';
import type { Machine } from './machine.ts';
import { chooseRanks } from './ranks.ts';
import { type BuiltBackend, isaNames, type KernelTable, kernelTables } from './tables.ts';

export const backends = ['native', 'wasm', 'hybrid', 'cuda'] as const;
export type Backend = (typeof backends)[number];

/** What the user asked for; undefined leaves it to the selector. */
export interface Wishes {
  readonly backend?: string | undefined;
  readonly isa?: string | undefined;
  readonly threads?: number | undefined;
}

export interface Plan {
  readonly backend: BuiltBackend;
  /** Kernel table by name. */
  readonly isa: string;
  /** Ranks. */
  readonly threads: number;
  /** Native: the CPU each rank is pinned to; null: where the system puts it. */
  readonly cpus: readonly number[] | null;
  /** Where the parts of the model run. */
  readonly placement: string;
  /** First the choice, then one line for every alternative that was rejected. */
  readonly reasons: readonly string[];
}

const absent: Record<Exclude<Backend, BuiltBackend>, string> = {
  hybrid: 'this build has no CUDA stages, with which the CPU would share the work',
  cuda: 'this build has no CUDA stages',
};

/** Chooses how a model runs on `machine`. Throws when a wish cannot be met: nothing falls back silently. */
export function selectBackend(machine: Machine, wishes: Wishes = {}): Plan {
  const backend = checkBackend(machine, wishes.backend ?? 'auto');
  const tables = kernelTables(machine);
  const chosen = chooseTable(tables, backend, wishes.isa);
  const ranks = chooseRanks(machine, chosen.backend, wishes.threads);
  return {
    backend: chosen.backend,
    isa: chosen.isa,
    threads: ranks.count,
    cpus: ranks.cpus,
    placement: 'all layers on the CPU, each matrix split by rows over the ranks',
    reasons: [
      `${chosen.backend}: chosen, ${whyBackend(chosen.backend, backend, wishes.isa)}`,
      `${chosen.isa}: chosen, ${wishes.isa === undefined ? 'the fastest that runs here' : 'as asked for by --isa'}`,
      `${ranks.count} ${ranks.count === 1 ? 'rank' : 'ranks'}: ${ranks.why}`,
      otherBackend(machine, chosen, backend, wishes.isa),
      ...Object.entries(absent).map(([name, why]) => `${name}: rejected, ${why}`),
      ...tables
        .filter((table) => table.backend === chosen.backend && table !== chosen)
        .map(({ isa, lacking }) => {
          const why = lacking ?? (wishes.isa === undefined ? 'slower' : 'not what --isa asks for');
          return `${isa}: rejected, ${why}`;
        }),
    ],
  };
}

function checkBackend({ native }: Machine, wish: string): 'auto' | BuiltBackend {
  if (wish === 'native' && !native.available) {
    throw perigeeError('BACKEND_UNAVAILABLE', { backend: wish, why: native.why });
  }
  if (wish === 'auto' || wish === 'wasm' || wish === 'native') return wish;
  const why =
    absent[wish as keyof typeof absent] ??
    `there is no backend of that name; the names are auto, ${backends.join(', ')}`;
  throw perigeeError('BACKEND_UNAVAILABLE', { backend: wish, why });
}

/** The fastest table of the backend; under 'auto' a name that only one backend has says which backend. */
function chooseTable(
  tables: readonly KernelTable[],
  backend: 'auto' | BuiltBackend,
  isa: string | undefined,
): KernelTable {
  const ofBackend = tables.filter((table) => backend === 'auto' || table.backend === backend);
  const candidates = ofBackend.filter((table) => isa === undefined || table.isa === isa);
  const ready = candidates.filter(({ lacking }) => lacking === null);
  // Vectors in WebAssembly are many times as fast as native code without them.
  const chosen = ready.find((table) => table.isa !== 'scalar') ?? ready[0];
  if (chosen !== undefined) return chosen;
  if (isa === undefined) {
    const name = backend === 'auto' ? 'wasm' : backend;
    throw perigeeError('BACKEND_UNAVAILABLE', { backend: name, why: `${candidates.at(-1)?.lacking}` });
  }
  const runs = new Set(ofBackend.filter(({ lacking }) => lacking === null).map((table) => table.isa));
  const why = candidates[0]?.lacking ?? whyUnknown(backend, isa);
  const here = backend === 'auto' ? 'here' : `on backend ${backend}`;
  throw perigeeError('ISA_UNAVAILABLE', {
    isa,
    why: `${why}; what runs ${here}: ${[...runs].join(', ') || 'nothing'}`,
  });
}

function whyUnknown(backend: string, isa: string): string {
  return isaNames.includes(isa)
    ? `backend ${backend} has no kernels of that name`
    : 'there are no kernels of that name';
}

function whyBackend(chosen: BuiltBackend, wish: 'auto' | BuiltBackend, isa: string | undefined): string {
  if (wish !== 'auto') return 'as asked for by --backend';
  if (isa !== undefined && isa !== 'scalar') return 'it has the kernels that --isa asks for';
  return chosen === 'native' ? 'the addon loads and passes its self-check' : 'the fastest that runs here';
}

function otherBackend(
  { native }: Machine,
  chosen: KernelTable,
  wish: 'auto' | BuiltBackend,
  isa: string | undefined,
): string {
  const other = chosen.backend === 'native' ? 'wasm' : 'native';
  if (wish !== 'auto') return `${other}: rejected, not what --backend asks for`;
  if (other === 'native' && !native.available) return `native: rejected, ${native.why}`;
  if (isa !== undefined && isa !== 'scalar') return `${other}: rejected, it has no kernels named ${isa}`;
  return `${other}: rejected, ${other === 'wasm' ? 'slower' : 'only its scalar kernels run here'}`;
}
