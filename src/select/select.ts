/** The choice of backend, kernels and ranks, with its reasons. Pure: the same machine and wishes give the same plan. */
import { perigeeError } from '../errors.ts';
import { type DeviceOptions, deviceIsa, deviceOptions, shortfall } from './devices.ts';
import type { Machine } from './machine.ts';
import { type MemoryTable, memoryTable } from './memory-table.ts';
import type { OptimizeWishes } from './optimize-wishes.ts';
import { type DevicePlacement, describePlacement, type ModelNeeds, type PlacedModel } from './placement.ts';
import { chooseRanks, type Ranks } from './ranks.ts';
import { isaNames, type KernelTable, kernelTables, type RankKind } from './tables.ts';

export const backends = ['native', 'wasm', 'hybrid', 'cuda'] as const;
export type Backend = (typeof backends)[number];

/** What the user asked for; undefined leaves it to the selector. */
export interface Wishes {
  readonly backend?: string | undefined;
  readonly isa?: string | undefined;
  readonly threads?: number | undefined;
  readonly exactActivations?: boolean | undefined;
}

export interface Plan {
  readonly backend: Backend;
  /** What the ranks are; null where devices do everything. */
  readonly ranks: RankKind | null;
  /** Kernel table of the ranks by name, or the device's architecture where there are none. */
  readonly isa: string;
  /** Ranks. */
  readonly threads: number;
  /** Native: the CPU each rank is pinned to; null: where the system puts it. */
  readonly cpus: readonly number[] | null;
  /** What is on which device; null where none takes part. */
  readonly devices: DevicePlacement | null;
  /** Need and have of every place that holds a part of the model; empty where no model was named. */
  readonly memory: readonly MemoryTable[];
  /** Where the parts of the model run. */
  readonly placement: string;
  /** First the choice, then one line for every alternative that was rejected. */
  readonly reasons: readonly string[];
}

/**
 * Chooses how a model runs on `machine`. Throws when a wish cannot be met: nothing falls back silently. Whether what was chosen
 * fits is for the caller to ask (assertFits of plan.memory). Without `needs` no model is named, and no device considered.
 */
export function selectBackend(
  machine: Machine,
  wishes: Wishes = {},
  needs: ModelNeeds | null = null,
  rules: OptimizeWishes | null = null,
): Plan {
  const wish = checkName(wishes.backend ?? 'auto');
  const options = deviceOptions(machine, wishes.exactActivations ?? false, needs, rules);
  if (wish === 'cuda' || wish === 'hybrid') {
    const option = options[wish];
    if (option.placed === null) throw perigeeError('BACKEND_UNAVAILABLE', { backend: wish, why: option.why });
    return devicePlan(machine, wishes, { wish, chosen: wish, placed: option.placed, options, needs, rules });
  }
  const chosen = (['cuda', 'hybrid'] as const).find((name) => options[name].placed?.fits);
  if (wish === 'auto' && wishes.isa === undefined && chosen !== undefined) {
    const placed = options[chosen].placed as PlacedModel;
    return devicePlan(machine, wishes, { wish, chosen, placed, options, needs, rules });
  }
  return cpuPlan(machine, wishes, { wish, options, needs, rules });
}

function checkName(wish: string): 'auto' | Backend {
  const names = ['auto', ...backends] as const;
  const known = names.find((name) => name === wish);
  if (known !== undefined) return known;
  const why = `there is no backend of that name; the names are ${names.join(', ')}`;
  throw perigeeError('BACKEND_UNAVAILABLE', { backend: wish, why });
}

interface Choice {
  readonly wish: 'auto' | Backend;
  readonly options: DeviceOptions;
  readonly needs: ModelNeeds | null;
  readonly rules: OptimizeWishes | null;
}

function cpuPlan(machine: Machine, wishes: Wishes, { wish, options, needs, rules }: Choice): Plan {
  const { native } = machine;
  if (wish === 'native' && !native.available) {
    throw perigeeError('BACKEND_UNAVAILABLE', { backend: wish, why: native.why });
  }
  const asked = wish === 'native' || wish === 'wasm' ? wish : 'auto';
  const tables = kernelTables(machine);
  const chosen = chooseTable(tables, asked, wishes.isa);
  const ranks = chooseRanks(machine, chosen.backend, wishes.threads);
  const ignored = rules === null ? [] : ['optimize rules: no effect, they place parts on GPUs and none takes part'];
  return {
    backend: chosen.backend,
    ranks: chosen.backend,
    isa: chosen.isa,
    threads: ranks.count,
    cpus: ranks.cpus,
    devices: null,
    memory: needs === null ? [] : [memoryTable('memory', needs.cpu, machine.memoryAvailable)],
    placement: 'all layers on the CPU, each matrix split by rows over the ranks',
    reasons: [
      `${chosen.backend}: chosen, ${whyBackend(chosen.backend, asked, wishes.isa)}`,
      ...rankReasons(chosen, ranks, wishes),
      ...ignored,
      otherBackend(machine, chosen, asked, wishes.isa),
      ...(['hybrid', 'cuda'] as const).map((name) => `${name}: rejected, ${whyNoDevice(name, options, wish, wishes)}`),
      ...otherTables(tables, chosen, wishes.isa),
    ],
  };
}

function rankReasons({ isa }: KernelTable, { count, why }: Ranks, wishes: Wishes): string[] {
  return [
    `${isa}: chosen, ${wishes.isa === undefined ? 'the fastest that runs here' : 'as asked for by --isa'}`,
    `${count} ${count === 1 ? 'rank' : 'ranks'}: ${why}`,
  ];
}

function otherTables(tables: readonly KernelTable[], chosen: KernelTable, wish: string | undefined): string[] {
  return tables
    .filter((table) => table.backend === chosen.backend && table !== chosen)
    .map(({ isa, lacking }) => {
      const why = lacking ?? (wish === undefined ? 'slower' : 'not what --isa asks for');
      return `${isa}: rejected, ${why}`;
    });
}

function whyNoDevice(name: 'hybrid' | 'cuda', options: DeviceOptions, wish: string, wishes: Wishes): string {
  const { placed, why } = options[name];
  if (placed === null) return why;
  if (wish !== 'auto') return 'not what --backend asks for';
  if (!placed.fits) return shortfall(placed.memory);
  return `it has no kernels named ${wishes.isa}`;
}

function devicePlan(
  machine: Machine,
  wishes: Wishes,
  {
    wish,
    chosen,
    placed,
    options,
    needs,
    rules,
  }: Choice & { readonly chosen: 'hybrid' | 'cuda'; readonly placed: PlacedModel },
): Plan {
  const { parts, residentExperts, memory } = placed;
  const tables = kernelTables(machine);
  if (chosen === 'cuda' && wishes.isa !== undefined) {
    throw perigeeError('ISA_UNAVAILABLE', {
      isa: wishes.isa,
      why: 'backend cuda has one set of kernels for each device; leave --isa out',
    });
  }
  const table = chosen === 'cuda' ? null : chooseTable(tables, 'auto', wishes.isa);
  const ranks = table === null ? null : chooseRanks(machine, table.backend, wishes.threads);
  const isa = table?.isa ?? deviceIsa(machine, parts[0]?.device ?? 0);
  const placement = describePlacement(placed, needs?.device.experts ?? 0);
  const why = wish === 'auto' ? chosenFor[chosen] : 'as asked for by --backend';
  const others = backends.filter((name) => name !== chosen);
  return {
    backend: chosen,
    ranks: table?.backend ?? null,
    isa,
    threads: ranks?.count ?? 0,
    cpus: ranks?.cpus ?? null,
    devices: { parts, residentExperts },
    memory,
    placement: table === null ? placement : `${placement}; routed experts on ${table.backend} ranks`,
    reasons: [
      `${chosen}: chosen, ${why}`,
      `placement: ${placement}`,
      ...(table !== null && ranks !== null ? rankReasons(table, ranks, wishes) : [`${isa}: chosen, the device's own`]),
      ...(rules?.notices ?? []).map((notice) => `optimize rules: ${notice}`),
      ...others.map((name) => `${name}: rejected, ${whyNotOther(name, wish, options, machine)}`),
      ...(table === null ? [] : otherTables(tables, table, wishes.isa)),
    ],
  };
}

const chosenFor = {
  cuda: 'the whole model fits on the GPUs',
  hybrid: 'the GPUs hold all but the routed experts, which memory holds',
} as const;

function whyNotOther(name: Backend, wish: 'auto' | Backend, options: DeviceOptions, { native }: Machine): string {
  if (name === 'native' && !native.available) return native.why;
  if (name === 'cuda' || name === 'hybrid') {
    const { placed, why } = options[name];
    if (placed === null) return why;
    if (!placed.fits) return shortfall(placed.memory);
  }
  return wish === 'auto' ? 'slower' : 'not what --backend asks for';
}

/** The fastest table of the backend; under 'auto' a name that only one backend has says which backend. */
function chooseTable(tables: readonly KernelTable[], backend: 'auto' | RankKind, isa: string | undefined): KernelTable {
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

function whyBackend(chosen: RankKind, wish: 'auto' | RankKind, isa: string | undefined): string {
  if (wish !== 'auto') return 'as asked for by --backend';
  if (isa !== undefined && isa !== 'scalar') return 'it has the kernels that --isa asks for';
  return chosen === 'native' ? 'the addon loads and passes its self-check' : 'the fastest that runs here';
}

function otherBackend(
  { native }: Machine,
  chosen: KernelTable,
  wish: 'auto' | RankKind,
  isa: string | undefined,
): string {
  const other = chosen.backend === 'native' ? 'wasm' : 'native';
  if (wish !== 'auto') return `${other}: rejected, not what --backend asks for`;
  if (other === 'native' && !native.available) return `native: rejected, ${native.why}`;
  if (isa !== undefined && isa !== 'scalar') return `${other}: rejected, it has no kernels named ${isa}`;
  return `${other}: rejected, ${other === 'wasm' ? 'slower' : 'only its scalar kernels run here'}`;
}
