/** The native addon as TypeScript sees it: loaded once per thread, and only offered after its tables have shown their bits. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { perigeeError } from '../errors.ts';
import type { NativeSupport } from '../select/machine.ts';
import { addonFile } from './assets.ts';

/** How a step ended; Outcome of native/session.h. */
export const Outcome = { Done: 0, Refused: 1, Closed: 2, FileLost: 3 } as const;
/** How a binding went; Bound of native/session.h. */
export const Bound = { Ok: 0, WrongShape: 1, BeyondFile: 2 } as const;
/** `file` of a binding whose bytes lie in the rank's own memory. */
export const madeFile = -1;

/** An engine with its ranks (native/engine_object.cc). Slots, vectors, types and taps are the engine's numbers. */
export interface NativeEngine {
  /** '' or what failed. Files are counted from 0 in the order of these calls. */
  mapFile(path: string): string;
  /** `offsets` has one byte offset per matrix. */
  bind(
    rank: number,
    slot: number,
    layer: number,
    type: number,
    rowBegin: number,
    rows: number,
    columns: number,
    file: number,
    offsets: Float64Array,
  ): number;
  setVector(vector: number, layer: number, type: number, raw: Uint8Array): boolean;
  writeMade(rank: number, offset: number, bytes: Uint8Array): void;
  /** Starts the ranks; resolves to an Outcome when each has brought its weights into memory. */
  start(): Promise<number>;
  loadedBytes(): number;
  /** [batchOutputs][vocabulary]; empty once the engine is closed. */
  logits(): Float32Array;
  /** Resolves to an Outcome. */
  step(
    tokens: Int32Array,
    positions: Int32Array,
    sequences: Int32Array,
    pageTables: readonly Int32Array[],
    outputs: Int32Array,
  ): Promise<number>;
  /** Of an engine of experts only: memory and byte offsets of asked, done, failed, h, chosen, weight and sum. */
  exchange(): readonly [memory: ArrayBuffer, offsets: Float64Array];
  /** Lets the ranks serve one step of a device; resolves to an Outcome. */
  serve(tokens: number): Promise<number>;
  /** A mapped file's bytes, or (`madeFile`) those made for the rank; each is asked for once. */
  weights(file: number, rank: number): ArrayBuffer;
  /** A copy of what the last step left, of `tokens` tokens; null where there is no such tap. */
  tap(tap: number, layer: number, tokens: number): ArrayBuffer | null;
  /** Milliseconds of the first rank by stage. */
  stageTimes(): Float64Array;
  /** The file and the position of the first byte that was found missing. */
  lostFile(): readonly [file: number, position: number] | null;
  close(): Promise<void>;
}

export interface NativeAddon {
  /** Name and refusal ('' for none) of every kernel table of this build, fastest first. */
  tables(): readonly (readonly [name: string, refusal: string])[];
  /** Bytes of working memory; 0 when the engine refuses the shape. The structs of engine/config.h as bytes. */
  engineBytes(config: Uint8Array, limits: Uint8Array): number;
  /** Weight rows of a type's number to floats; null for a type the engine does not read. */
  dequantize(type: number, raw: Uint8Array, rows: number, columns: number): Float32Array | null;
  /** GB read from memory and 10^9 8-bit operations a second by `threads` threads at once; takes a second or two. */
  measure(threads: number, isa: string, cpus: Int32Array): Promise<readonly [read: number, int8: number]>;
  readonly NativeEngine: new (
    config: Uint8Array,
    limits: Uint8Array,
    isa: string,
    cpus: Int32Array,
    madeBytes: Float64Array,
  ) => NativeEngine;
}

interface Loaded {
  readonly addon: NativeAddon | null;
  readonly support: NativeSupport;
}

let loaded: Loaded | null = null;

function load(): Loaded {
  if (!existsSync(addonFile))
    return { addon: null, support: { available: false, why: 'the addon was not built; it needs a C++ compiler' } };
  try {
    const addon = createRequire(import.meta.url)(addonFile) as NativeAddon;
    const tables = addon.tables();
    const isas = tables.flatMap(([name, refusal]) => (refusal === '' ? [name] : []));
    const refused = Object.fromEntries(tables.filter(([, refusal]) => refusal !== ''));
    return { addon, support: { available: true, isas, refused } };
  } catch (error) {
    const why = `the addon does not load (${error instanceof Error ? error.message : String(error)})`;
    return { addon: null, support: { available: false, why } };
  }
}

/** Loads the addon, and tells which kernel tables this CPU runs, fastest first. */
export function nativeSupport(): NativeSupport {
  loaded ??= load();
  return loaded.support;
}

/** The addon; refused by name where there is none. */
export function nativeAddon(): NativeAddon {
  const support = nativeSupport();
  if (!support.available) throw perigeeError('BACKEND_UNAVAILABLE', { backend: 'native', why: support.why });
  return loaded?.addon as NativeAddon;
}

/** The kernel table called `isa`, or the fastest one. */
export function nativeTable(isa: string | null): string {
  const tables = nativeAddon().tables();
  const usable = tables.filter(([, refusal]) => refusal === '').map(([name]) => name);
  if (isa === null) return usable[0] as string;
  const found = tables.find(([name]) => name === isa);
  if (found?.[1] === '') return isa;
  const why = found ? found[1] : `this build has ${tables.map(([name]) => name).join(', ')}`;
  throw perigeeError('BACKEND_UNAVAILABLE', { backend: `native ${isa}`, why });
}

/**
 * What this machine can do at most with `threads` threads, each on its CPU of `cpus` where given: bytes read from memory, and
 * 8-bit multiplies and adds from the first-level cache with the instruction that the table uses.
 */
export async function measureNative(
  threads: number,
  isa: string | null,
  cpus: readonly number[] = [],
): Promise<{ readonly readGbPerSecond: number; readonly int8Gops: number }> {
  const [readGbPerSecond, int8Gops] = await nativeAddon().measure(threads, nativeTable(isa), Int32Array.from(cpus));
  return { readGbPerSecond, int8Gops };
}
