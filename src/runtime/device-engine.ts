/** A model's part on GPUs: made, filled with weights, stepped. Whether routed experts are among them is its users' affair. */
import { perigeeError } from '../errors.ts';
import { GgmlType } from '../gguf/types.ts';
import type { MatrixSlot } from '../model/plan.ts';
import { matrixSlots, planRank } from '../model/plan.ts';
import type { DevicePlacement } from '../select/placement.ts';
import { fillVectors } from './bind.ts';
import type { CudaAddon, CudaEngine, CudaEngineOptions } from './cuda-addon.ts';
import { stages, vectorSlots, writeConfig } from './layout.ts';
import { withFiles } from './model-files.ts';
import { nativeAddon } from './native-addon.ts';
import { chunksOf, type Dequantize, fillPiece, placedBytes } from './pieces.ts';
import { pieceOf } from './place.ts';
import { checkStepSize, pageTokens, type StageTime, type StartOptions, type StepBatch } from './runtime.ts';
import { type TapName, tapNames } from './taps.ts';

export interface DeviceOptions extends StartOptions {
  readonly placement: DevicePlacement;
  /** Times of stages instead of graphs. */
  readonly profile: boolean;
}

/** Outcome of native/cuda/device_model.h. */
export const DeviceOutcome = { Done: 0, Refused: 1, Closed: 2, Failed: 4 } as const;

/** Far longer than ranks take for one layer of the largest step; a rank that died is noticed sooner by who started it. */
const waitMilliseconds = 30_000;
/** Measured on a page-cached file: four reads in flight reach twice the speed of one, more gain nothing. */
const readsInFlight = 4;
/** More than the engine's two structs take. */
const structBytes = 1024;

const failed = (what: string) => perigeeError('ENGINE_FAILED', { what });

/** Throws what a call of the addon says has failed. */
export function expectNone(failure: string): void {
  if (failure !== '') throw failed(failure);
}

export class DeviceEngine {
  readonly engine: CudaEngine;
  readonly #options: DeviceOptions;
  #logits: Float32Array = new Float32Array(0);
  #closing: Promise<void> | null = null;
  #tokensInStep = 0;

  constructor(addon: Pick<CudaAddon, 'CudaEngine'>, backend: 'cuda' | 'hybrid', options: DeviceOptions) {
    this.#options = options;
    try {
      this.engine = new addon.CudaEngine(engineOptions(options));
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      throw perigeeError('BACKEND_UNAVAILABLE', { backend, why }, { cause });
    }
  }

  /** Brings the norms, and every matrix of the slots that are `wanted`; `onBytes` hears of each. */
  async upload(wanted: (slot: MatrixSlot) => boolean, onBytes: (count: number) => void): Promise<void> {
    const { config, tensors, recipes, files } = this.#options;
    await fillVectors(this.#options, (slot, layer, tensor, raw) =>
      this.engine.setVector(vectorSlots.indexOf(slot), layer, GgmlType[tensor.type], raw),
    );
    const { bindings } = planRank(config, tensors, 0, 1, { begin: 0, end: Number.MAX_SAFE_INTEGER });
    const matrices = bindings
      .filter(({ slot }) => wanted(slot))
      .flatMap((binding) => binding.matrices.map((placed, index) => ({ ...binding, placed, index })))
      .values();
    const dequantize: Dequantize = (type, raw, rows, columns) =>
      nativeAddon().dequantize(GgmlType[type], raw, rows, columns) as Float32Array;
    let turn: Promise<unknown> = Promise.resolve();
    const inTurn = (send: () => Promise<string>): Promise<string> => {
      const sent = turn.then(send);
      turn = sent.catch(() => {});
      return sent;
    };
    await withFiles(files, async (opened) => {
      const bring = async (): Promise<void> => {
        let buffer = new Uint8Array(0);
        for (const { slot, layer, type, rows, columns, matrices: all, index, placed } of matrices) {
          const whole = pieceOf({ ...placed, address: 0 }, recipes);
          const size = placedBytes(whole);
          if (buffer.length < size) buffer = new Uint8Array(size);
          for (const piece of chunksOf([whole])) {
            const target = buffer.subarray(piece.address, piece.address + placedBytes(piece));
            onBytes(await fillPiece(piece, target, opened, dequantize));
          }
          const bytes = buffer.subarray(0, size);
          const slotNumber = matrixSlots.indexOf(slot);
          const send = () =>
            this.engine.upload(slotNumber, layer, GgmlType[type], rows, columns, all.length, index, bytes);
          expectNone(await inTurn(send));
        }
      };
      await Promise.all(Array.from({ length: readsInFlight }, bring));
    });
  }

  /** Ready for steps once everything has been uploaded and attached. */
  async start(): Promise<void> {
    expectNone(await this.engine.start());
    this.#logits = this.engine.logits();
  }

  /** `expertsBy`: of ExpertsBy. */
  async step(batch: StepBatch, expertsBy: number): Promise<Float32Array> {
    if (this.#closing) throw failed('it was closed');
    const { limits, config, taps } = this.#options;
    const { tokens, positions, sequences, pageTables, outputs, residuals } = batch;
    checkStepSize(batch, limits, taps ? (config.layers + 1) * tokens.length * config.hidden : 0);
    const outcome = await this.engine.step(tokens, positions, sequences, pageTables, outputs, expertsBy, residuals);
    if (outcome === DeviceOutcome.Refused) throw new RangeError('the step was refused: an index in it is out of range');
    if (outcome === DeviceOutcome.Closed) throw failed('it was closed');
    if (outcome !== DeviceOutcome.Done) throw failed(this.engine.failure());
    this.#tokensInStep = tokens.length;
    return this.#logits.subarray(0, outputs.length * config.vocabulary);
  }

  tap(name: TapName, layer: number): Float32Array | Int32Array {
    const copy = this.#closing ? null : this.engine.tap(tapNames.indexOf(name), layer, this.#tokensInStep);
    if (copy === null) throw new RangeError(`there is no tap ${name} of layer ${layer}`);
    return name === 'router-choices' ? new Int32Array(copy) : new Float32Array(copy);
  }

  stageTimes(): StageTime[] {
    const times = this.engine.stageTimes();
    return stages.map((stage, index) => ({ stage, milliseconds: times[index] ?? 0 }));
  }

  close(): Promise<void> {
    this.#closing ??= this.engine.close();
    return this.#closing;
  }
}

function engineOptions({ config, limits, exact, taps, placement, profile }: DeviceOptions): CudaEngineOptions {
  const memory = new ArrayBuffer(structBytes);
  const all = { ...limits, ranks: 1, pageTokens, exact, taps, spins: 0, expertsOnly: false };
  const at = writeConfig(memory, 0, config, all);
  return {
    config: new Uint8Array(memory, at.config, at.limits - at.config),
    limits: new Uint8Array(memory, at.limits, at.end - at.limits),
    parts: Int32Array.from(placement.parts.flatMap(({ device, firstLayer, end }) => [device, firstLayer, end])),
    residentExperts: Int32Array.from(placement.residentExperts),
    profile,
    waitMilliseconds,
  };
}
