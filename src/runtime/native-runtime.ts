/** The engine as native code: ranks are threads of the addon, and weights are read where the mapped files have them. */
import { stat } from 'node:fs/promises';
import { availableParallelism, totalmem } from 'node:os';
import { perigeeError } from '../errors.ts';
import { GgmlType } from '../gguf/types.ts';
import type { ModelConfig } from '../model/config.ts';
import { matrixSlots } from '../model/plan.ts';
import { fillVectors } from './bind.ts';
import { type EngineLimits, stages, vectorSlots, writeConfig } from './layout.ts';
import { withFiles } from './model-files.ts';
import { Bound, type NativeEngine, nativeAddon, nativeTable, Outcome } from './native-addon.ts';
import { type NativeRank, placeNative } from './native-place.ts';
import { chunksOf, type Dequantize, fillPiece, placedBytes } from './pieces.ts';
import { activeBytes, weightBytes } from './place.ts';
import {
  checkStepSize,
  pageTokens,
  type Runtime,
  type RuntimeLimits,
  type StageTime,
  type StartOptions,
  type StepBatch,
} from './runtime.ts';
import { type TapName, tapNames } from './taps.ts';

export interface NativeOptions extends StartOptions {
  /** The CPU each rank is pinned to; empty: where the system puts it. */
  readonly cpus: readonly number[];
}

/** How often a barrier looks before it sleeps, some 0.3 to 1 ms; measured, see native/README.md. */
const spins = 20_000;
const progressMilliseconds = 100;
/** More than the engine's two structs take. */
const structBytes = 1024;

/** Loads the model and starts the ranks. */
export async function startNative(options: NativeOptions): Promise<Runtime> {
  const runtime = new NativeRuntime(options);
  try {
    await runtime.load(options);
  } catch (error) {
    await runtime.close();
    throw error;
  }
  return runtime;
}

class NativeRuntime implements Runtime {
  readonly backend = 'native';
  readonly isa: string;
  readonly threads: number;
  readonly config: ModelConfig;
  readonly limits: RuntimeLimits;
  readonly weightBytes: number;
  readonly activeWeightBytes: number;
  readonly #engine: NativeEngine;
  readonly #ranks: readonly NativeRank[];
  readonly #files: readonly string[];
  #logits: Float32Array = new Float32Array(0);
  #closing: Promise<void> | null = null;
  #tokensInStep = 0;

  constructor(options: NativeOptions) {
    const { config, threads } = options;
    this.config = config;
    this.limits = options.limits;
    this.threads = threads;
    this.isa = nativeTable(options.isa);
    this.weightBytes = weightBytes(options.tensors);
    this.activeWeightBytes = activeBytes(config, options.tensors);
    this.#files = options.files;
    this.#ranks = placeNative(config, options.tensors, options.recipes, threads);
    this.#engine = createEngine(options, this.isa, this.#ranks);
  }

  /** Maps and binds here, brings the weights into memory in the ranks; resolves when every rank is ready for steps. */
  async load(options: NativeOptions): Promise<void> {
    const engine = this.#engine;
    for (const path of this.#files) {
      const why = engine.mapFile(path);
      if (why !== '') throw perigeeError('MODEL_NOT_FOUND', { path, why });
    }
    for (const [rank, placed] of this.#ranks.entries()) await this.#bindRank(rank, placed);
    await fillVectors(options, (slot, layer, tensor, raw) =>
      engine.setVector(vectorSlots.indexOf(slot), layer, GgmlType[tensor.type], raw),
    );
    const bytesTotal = this.weightBytes;
    const report = () => options.onProgress({ bytesRead: Math.min(engine.loadedBytes(), bytesTotal), bytesTotal });
    const timer = setInterval(report, progressMilliseconds);
    try {
      await this.#expectDone(await engine.start());
      for (const [rank, { pieces }] of this.#ranks.entries()) await this.#make(rank, pieces);
    } finally {
      clearInterval(timer);
    }
    options.onProgress({ bytesRead: bytesTotal, bytesTotal });
    this.#logits = engine.logits();
  }

  async step(batch: StepBatch): Promise<Float32Array> {
    if (this.#closing) throw closed();
    checkStepSize(batch, this.limits);
    const { tokens, positions, sequences, pageTables, outputs } = batch;
    const outcome = await this.#engine.step(tokens, positions, sequences, pageTables, outputs);
    await this.#expectDone(outcome);
    this.#tokensInStep = tokens.length;
    return this.#logits.subarray(0, outputs.length * this.config.vocabulary);
  }

  tap(name: TapName, layer: number): Float32Array | Int32Array {
    const copy = this.#closing ? null : this.#engine.tap(tapNames.indexOf(name), layer, this.#tokensInStep);
    if (copy === null) throw new RangeError(`there is no tap ${name} of layer ${layer}`);
    return name === 'router-choices' ? new Int32Array(copy) : new Float32Array(copy);
  }

  stageTimes(): StageTime[] {
    const times = this.#engine.stageTimes();
    return stages.map((stage, index) => ({ stage, milliseconds: times[index] ?? 0 }));
  }

  close(): Promise<void> {
    this.#closing ??= this.#engine.close();
    return this.#closing;
  }

  async #bindRank(rank: number, { bindings }: NativeRank): Promise<void> {
    for (const { slot, layer, type, rowBegin, rows, columns, file, offsets } of bindings) {
      const bound = this.#engine.bind(
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
        if (this.#closing) throw closed();
        this.#engine.writeMade(rank, piece.address, bytes);
      }
    });
  }

  async #expectDone(outcome: number): Promise<void> {
    if (outcome === Outcome.Done) return;
    if (outcome === Outcome.Refused) throw new RangeError('the step was refused: an index in it is out of range');
    const lost = this.#engine.lostFile();
    if (outcome === Outcome.Closed || !lost) throw closed();
    const path = this.#files[lost[0]] as string;
    const position = lost[1];
    const size = await stat(path).then(
      (found) => found.size,
      () => 0,
    );
    if (size <= position) throw perigeeError('MODEL_FILE_SHRANK', { path, position: size });
    throw perigeeError('ENGINE_FAILED', { what: `${path} could not be read at byte ${position}` });
  }
}

const closed = () => perigeeError('ENGINE_FAILED', { what: 'it was closed' });

/** Checks the sizes, then allocates. */
function createEngine(options: NativeOptions, isa: string, ranks: readonly NativeRank[]): NativeEngine {
  const { config, threads } = options;
  const limits: EngineLimits = {
    ...options.limits,
    ranks: threads,
    pageTokens,
    exact: options.exact,
    taps: options.taps,
    expertsOnly: false,
    spins: threads <= availableParallelism() ? spins : 0,
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
