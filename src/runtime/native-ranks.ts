/** Ranks as threads of the addon, with their weights: in the mapped files where those have them, else in memory of ours. */
import { stat } from 'node:fs/promises';
import { availableParallelism, totalmem } from 'node:os';
import { perigeeError } from '../errors.ts';
import { GgmlType } from '../gguf/types.ts';
import { matrixSlots } from '../model/plan.ts';
import { type EngineLimits, writeConfig } from './layout.ts';
import { withFiles } from './model-files.ts';
import { Bound, type NativeEngine, nativeAddon, nativeTable, Outcome } from './native-addon.ts';
import { type NativeRank, placeNative } from './native-place.ts';
import { chunksOf, type Dequantize, fillPiece, placedBytes } from './pieces.ts';
import { type Role, weightBytes } from './place.ts';
import { pageTokens, type StartOptions } from './runtime.ts';

export interface NativeOptions extends StartOptions {
  /** The CPU each rank is pinned to; empty: where the system puts it. */
  readonly cpus: readonly number[];
}

/** How often a barrier looks before it sleeps, some 0.3 to 1 ms; measured, see native/README.md. */
const spins = 20_000;
const progressMilliseconds = 100;
/** More than the engine's two structs take. */
const structBytes = 1024;

const closed = () => perigeeError('ENGINE_FAILED', { what: 'it was closed' });

export class NativeRanks {
  readonly isa: string;
  readonly engine: NativeEngine;
  readonly placed: readonly NativeRank[];
  readonly #files: readonly string[];
  #closing: Promise<void> | null = null;

  /** Loads what the role needs and starts the ranks. */
  static async start(options: NativeOptions, role: Role, setVectors?: (ranks: NativeRanks) => Promise<void>) {
    const ranks = new NativeRanks(options, role);
    try {
      await ranks.#load(options, role, setVectors);
    } catch (error) {
      await ranks.close();
      throw error;
    }
    return ranks;
  }

  private constructor(options: NativeOptions, role: Role) {
    this.isa = nativeTable(options.isa);
    this.#files = options.files;
    this.placed = placeNative(options.config, options.tensors, options.recipes, role, options.threads);
    this.engine = createEngine(options, role, this.isa, this.placed);
  }

  /** Throws once closed. */
  assertOpen(): void {
    if (this.#closing) throw closed();
  }

  /** Turns an Outcome into an error, unless all is well. */
  async expectDone(outcome: number): Promise<void> {
    if (outcome === Outcome.Done) return;
    if (outcome === Outcome.Refused) throw new RangeError('the step was refused: an index in it is out of range');
    if (outcome !== Outcome.Closed) await this.assertWhole();
    throw closed();
  }

  /** Rejects by the name of a mapped file of which bytes were found missing: what was read of it may be zeros. */
  async assertWhole(): Promise<void> {
    const lost = this.engine.lostFile();
    if (!lost) return;
    const path = this.#files[lost[0]] as string;
    const position = lost[1];
    const size = await stat(path).then(
      (found) => found.size,
      () => 0,
    );
    if (size <= position) throw perigeeError('MODEL_FILE_SHRANK', { path, position: size });
    throw perigeeError('ENGINE_FAILED', { what: `${path} could not be read at byte ${position}` });
  }

  close(): Promise<void> {
    this.#closing ??= this.engine.close();
    return this.#closing;
  }

  /** Maps and binds here, brings the weights into memory in the ranks; resolves when every rank is ready for steps. */
  async #load(options: NativeOptions, role: Role, setVectors?: (ranks: NativeRanks) => Promise<void>): Promise<void> {
    for (const path of this.#files) {
      const why = this.engine.mapFile(path);
      if (why !== '') throw perigeeError('MODEL_NOT_FOUND', { path, why });
    }
    for (const [rank, placed] of this.placed.entries()) await this.#bindRank(rank, placed);
    await setVectors?.(this);
    const bytesTotal = weightBytes(options.tensors, role);
    const report = () => options.onProgress({ bytesRead: Math.min(this.engine.loadedBytes(), bytesTotal), bytesTotal });
    const timer = setInterval(report, progressMilliseconds);
    try {
      await this.expectDone(await this.engine.start());
      for (const [rank, { pieces }] of this.placed.entries()) await this.#make(rank, pieces);
    } finally {
      clearInterval(timer);
    }
    options.onProgress({ bytesRead: bytesTotal, bytesTotal });
  }

  async #bindRank(rank: number, { bindings }: NativeRank): Promise<void> {
    for (const { slot, layer, type, rowBegin, rows, columns, file, offsets } of bindings) {
      const bound = this.engine.bind(
        rank,
        matrixSlots.indexOf(slot),
        layer,
        GgmlType[type],
        rowBegin,
        rows,
        columns,
        file,
        offsets,
      );
      if (bound === Bound.Ok) continue;
      if (bound === Bound.BeyondFile) {
        const path = this.#files[file] as string;
        throw perigeeError('MODEL_FILE_SHRANK', { path, position: (await stat(path)).size });
      }
      throw new Error(`the engine refused ${slot} of layer ${layer}, rank ${rank}: ${type} ${rows} x ${columns}`);
    }
  }

  /** Writes the weights that are not in a file as the engine wants them. */
  async #make(rank: number, pieces: NativeRank['pieces']): Promise<void> {
    const dequantize: Dequantize = (type, raw, rows, columns) =>
      nativeAddon().dequantize(GgmlType[type], raw, rows, columns) as Float32Array;
    await withFiles(this.#files, async (files) => {
      for (const piece of chunksOf(pieces)) {
        const bytes = new Uint8Array(placedBytes(piece));
        await fillPiece(piece, bytes, files, dequantize);
        this.assertOpen();
        this.engine.writeMade(rank, piece.address, bytes);
      }
    });
  }
}

/** Checks the sizes, then allocates. */
function createEngine(options: NativeOptions, role: Role, isa: string, ranks: readonly NativeRank[]): NativeEngine {
  const { config, threads } = options;
  const limits: EngineLimits = {
    ...options.limits,
    ranks: threads,
    pageTokens,
    exact: options.exact,
    taps: options.taps && role === 'model',
    spins: threads <= availableParallelism() ? spins : 0,
    expertsOnly: role === 'experts',
  };
  const memory = new ArrayBuffer(structBytes);
  const at = writeConfig(memory, 0, config, limits);
  const configBytes = new Uint8Array(memory, at.config, at.limits - at.config);
  const limitBytes = new Uint8Array(memory, at.limits, at.end - at.limits);
  const addon = nativeAddon();
  const bytes = addon.engineBytes(configBytes, limitBytes);
  if (bytes === 0) throw perigeeError('MODEL_SHAPE_REFUSED', { name: config.name });
  const most = Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
  if (bytes > most) throw perigeeError('CONTEXT_TOO_LARGE', { context: limits.context, bytes, most });
  const made = Float64Array.from(ranks, ({ madeBytes }) => madeBytes);
  return new addon.NativeEngine(configBytes, limitBytes, isa, Int32Array.from(options.cpus), made);
}
