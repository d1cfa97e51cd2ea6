/** The choice of backend, kernels and ranks, with its reasons. Pure: the same machine and wishes give the same plan. */
import { perigeeError } from '../errors.ts';
import type { Machine } from './machine.ts';

export const backends = ['wasm', 'native', 'hybrid', 'cuda'] as const;
export type Backend = (typeof backends)[number];

/** Kernel tables of the WASM builds, fastest first. */
export const wasmIsas = ['relaxed', 'simd128', 'scalar'] as const;
export type WasmIsa = (typeof wasmIsas)[number];

/** What the user asked for; undefined leaves it to the selector. */
export interface Wishes {
  readonly backend?: string | undefined;
  readonly isa?: string | undefined;
  readonly threads?: number | undefined;
}

export interface Plan {
  readonly backend: 'wasm';
  readonly isa: WasmIsa;
  /** The build of the core that holds the kernels. */
  readonly core: 'relaxed' | 'simd128';
  /** Ranks. */
  readonly threads: number;
  /** Where the parts of the model run. */
  readonly placement: string;
  /** First the choice, then one line for every alternative that was rejected. */
  readonly reasons: readonly string[];
}

/** Ranks are a byte in the core's tables, and no machine gains from more. */
export const mostThreads = 256;

const absent: Record<Exclude<Backend, 'wasm'>, string> = {
  native: 'this build has no native addon',
  hybrid: 'this build has no native addon, through which CPU and GPU would share the work',
  cuda: 'this build has no CUDA stages',
};

/** Chooses how a model runs on `machine`. Throws when a wish cannot be met: nothing falls back silently. */
export function selectBackend(machine: Machine, wishes: Wishes = {}): Plan {
  const backend = checkBackend(wishes.backend ?? 'auto');
  const isa = chooseIsa(machine, wishes.isa);
  const threads = chooseThreads(machine, wishes.threads);
  const asked = backend === 'auto' ? 'the only backend in this build' : 'as asked for by --backend';
  return {
    backend: 'wasm',
    isa: isa.name,
    core: isa.name === 'relaxed' ? 'relaxed' : 'simd128',
    threads: threads.count,
    placement: 'all layers on the CPU, each matrix split by rows over the ranks',
    reasons: [
      `wasm: chosen, ${asked}`,
      `${isa.name}: chosen, ${isa.why}`,
      `${threads.count} ${threads.count === 1 ? 'rank' : 'ranks'}: ${threads.why}`,
      ...Object.entries(absent).map(([name, why]) => `${name}: rejected, ${why}`),
      ...isa.rejected,
    ],
  };
}

function checkBackend(wish: string): 'auto' | 'wasm' {
  if (wish === 'auto' || wish === 'wasm') return wish;
  const why =
    absent[wish as keyof typeof absent] ??
    `there is no backend of that name; the names are auto, ${backends.join(', ')}`;
  throw perigeeError('BACKEND_UNAVAILABLE', { backend: wish, why });
}

interface IsaChoice {
  readonly name: WasmIsa;
  readonly why: string;
  readonly rejected: readonly string[];
}

function chooseIsa(machine: Machine, wish: string | undefined): IsaChoice {
  const missing: Record<WasmIsa, string | null> = {
    relaxed: machine.wasm.relaxedSimd ? null : `Node ${machine.node} does not compile WebAssembly relaxed SIMD`,
    simd128: machine.wasm.simd ? null : `Node ${machine.node} does not compile WebAssembly SIMD`,
    // The scalar table lives in the SIMD128 build.
    scalar: machine.wasm.simd ? null : `Node ${machine.node} does not compile WebAssembly SIMD`,
  };
  if (wish !== undefined && !(wish in missing)) {
    throw perigeeError('ISA_UNAVAILABLE', { isa: wish, why: `the wasm backend has ${wasmIsas.join(', ')}` });
  }
  const name = (wish as WasmIsa | undefined) ?? wasmIsas.find((isa) => missing[isa] === null);
  if (name === undefined) throw perigeeError('BACKEND_UNAVAILABLE', { backend: 'wasm', why: `${missing.simd128}` });
  const why = missing[name];
  if (why !== null) throw perigeeError('ISA_UNAVAILABLE', { isa: name, why });
  return {
    name,
    why: wish === undefined ? 'the fastest this Node compiles' : 'as asked for by --isa',
    rejected: wasmIsas
      .filter((isa) => isa !== name)
      .map((isa) => `${isa}: rejected, ${missing[isa] ?? (wish === undefined ? 'slower' : 'not what --isa asks for')}`),
  };
}

function chooseThreads(machine: Machine, wish: number | undefined): { readonly count: number; readonly why: string } {
  if (wish === undefined) {
    const cores = machine.physicalCores === machine.cores ? '' : `; the machine has ${machine.physicalCores} cores`;
    return { count: Math.min(machine.cores, mostThreads), why: `one for each available hardware thread${cores}` };
  }
  if (!Number.isInteger(wish) || wish < 1 || wish > mostThreads) {
    throw perigeeError('OPTION_INVALID', {
      option: '--threads',
      value: `${wish}`,
      expected: `a whole number from 1 to ${mostThreads}`,
    });
  }
  const crowded = wish > machine.cores ? '; more than cores, so ranks wait for each other' : '';
  return { count: wish, why: `as asked for by --threads${crowded}` };
}
