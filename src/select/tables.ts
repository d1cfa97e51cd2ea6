/** The kernel tables of both backends, and what each lacks here. All of them give the same bits. */
import type { Machine } from './machine.ts';

/** What ranks are: threads of the addon, or workers. */
export type RankKind = 'native' | 'wasm';

export interface KernelTable {
  readonly backend: RankKind;
  readonly isa: string;
  /** Why it cannot run here; null: it can. */
  readonly lacking: string | null;
}

/** What a CPU must have, fastest first. */
const nativeNeeds = {
  amx: 'AMX tiles of 8-bit integers',
  avx512: 'AVX-512 with VNNI',
  avx2: 'AVX2',
  neon: 'NEON with dot products',
  scalar: 'nothing',
} as const;
const x64Only: readonly string[] = ['amx', 'avx512', 'avx2'];

const wasmIsas = ['relaxed', 'simd128', 'scalar'] as const;

/** Every name that --isa takes. */
export const isaNames: readonly string[] = [...new Set([...Object.keys(nativeNeeds), ...wasmIsas])];

/** Of each backend, fastest first. */
export function kernelTables(machine: Machine): readonly KernelTable[] {
  const native = Object.entries(nativeNeeds).map(([isa, need]) => ({
    backend: 'native' as const,
    isa,
    lacking: nativeLacks(machine, isa, need),
  }));
  const wasm = wasmIsas.map((isa) => ({ backend: 'wasm' as const, isa, lacking: wasmLacks(machine, isa) }));
  return [...native, ...wasm];
}

function nativeLacks({ native, platform }: Machine, isa: string, need: string): string | null {
  if (!native.available) return native.why;
  if (native.isas.includes(isa)) return null;
  if (isa === 'neon' && platform.endsWith('x64')) return 'it is for arm64';
  if (x64Only.includes(isa) && platform.endsWith('arm64')) return 'it is for x64';
  const refusal = native.refused[isa];
  return refusal === undefined ? 'this build of the addon does not have it' : `${refusal} (kernels for ${need})`;
}

function wasmLacks({ wasm, node }: Machine, isa: (typeof wasmIsas)[number]): string | null {
  if (isa === 'relaxed') return wasm.relaxedSimd ? null : `Node ${node} does not compile WebAssembly relaxed SIMD`;
  // The scalar table lives in the SIMD128 build.
  return wasm.simd ? null : `Node ${node} does not compile WebAssembly SIMD`;
}
