/** A model whose routed experts are computed by CPU ranks and whose everything else is on GPUs. */
import { perigeeError } from '../errors.ts';
import { GgmlType } from '../gguf/types.ts';
import type { ModelConfig } from '../model/config.ts';
import { matrixSlots } from '../model/plan.ts';
import { type BreakEven, measureBreakEven } from './break-even.ts';
import { type CudaAddon, cudaAddon, ExpertsBy } from './cuda-addon.ts';
import { DeviceEngine, type DeviceOptions, expectNone } from './device-engine.ts';
import { ExpertMover } from './expert-mover.ts';
import type { ExpertRanks } from './expert-ranks.ts';
import { activeBytes, weightBytes } from './place.ts';
import type { LoadProgress, Runtime, RuntimeLimits, StageTime, StepBatch } from './runtime.ts';
import type { TapName } from './taps.ts';

export interface HybridOptions extends DeviceOptions {
  /** Loads and starts the ranks; they tell of their progress. */
  readonly startRanks: (onProgress: (progress: LoadProgress) => void) => Promise<ExpertRanks>;
}

/** Loads the experts into the ranks and the rest onto the devices, lets them meet, and measures which is faster when. */
export async function startHybrid(
  options: HybridOptions,
  addon: Pick<CudaAddon, 'CudaEngine'> = cudaAddon('hybrid'),
): Promise<Runtime> {
  const device = new DeviceEngine(addon, 'hybrid', options);
  const bytesTotal = weightBytes(options.tensors);
  let bytesRead = 0;
  const report = () => options.onProgress({ bytesRead: Math.min(bytesRead, bytesTotal), bytesTotal });
  let ranks: ExpertRanks | null = null;
  try {
    ranks = await options.startRanks((progress) => {
      bytesRead = progress.bytesRead;
      report();
    });
    await device.upload(
      (slot) => !slot.endsWith('_exps'),
      (count) => {
        bytesRead += count;
        report();
      },
    );
    attach(device, ranks);
    await device.start();
    const mover = await ExpertMover.start(device.engine, options);
    const { config, limits, placement } = options;
    const speed = await device.engine.measureStreaming();
    const even = await measureBreakEven(ranks, config, limits.batchTokens, speed, placement.residentExperts);
    return new HybridRuntime(options, device, ranks, mover, even);
  } catch (error) {
    await device.close(); // before the memory that it has pinned
    await ranks?.close();
    throw error;
  }
}

/** Shows the device where it meets the ranks, and where these hold the experts. */
function attach({ engine }: DeviceEngine, ranks: ExpertRanks): void {
  expectNone(engine.attachExchange(ranks.memory, ranks.offsets));
  for (const { slot, layer, type, rowBegin, rows, columns, memory, offsets } of ranks.parts()) {
    const at = matrixSlots.indexOf(slot);
    expectNone(engine.attachExperts(at, layer, GgmlType[type], rowBegin, rows, columns, memory, offsets));
  }
}

class HybridRuntime implements Runtime {
  readonly backend = 'hybrid';
  readonly isa: string;
  readonly threads: number;
  readonly config: ModelConfig;
  readonly limits: RuntimeLimits;
  readonly weightBytes: number;
  readonly activeWeightBytes: number;
  readonly notes: readonly string[];
  readonly #device: DeviceEngine;
  readonly #ranks: ExpertRanks;
  readonly #mover: ExpertMover;
  readonly #breakEven: number;
  #failure: unknown = null;
  #running: Promise<unknown> = Promise.resolve();
  #closing: Promise<void> | null = null;

  constructor(
    options: HybridOptions,
    device: DeviceEngine,
    ranks: ExpertRanks,
    mover: ExpertMover,
    { tokens, why }: BreakEven,
  ) {
    this.isa = ranks.isa;
    this.threads = ranks.threads;
    this.config = options.config;
    this.limits = options.limits;
    this.weightBytes = weightBytes(options.tensors);
    this.activeWeightBytes = activeBytes(options.config, options.tensors);
    this.notes = [why];
    this.#device = device;
    this.#ranks = ranks;
    this.#mover = mover;
    this.#breakEven = tokens;
  }

  step(batch: StepBatch): Promise<Float32Array> {
    const step = this.#step(batch);
    this.#running = step.catch(() => {});
    return step;
  }

  async #step(batch: StepBatch): Promise<Float32Array> {
    if (this.#failure) throw this.#failure;
    if (this.#closing) throw perigeeError('ENGINE_FAILED', { what: 'it was closed' });
    try {
      const streams = batch.tokens.length >= this.#breakEven;
      const logits = await (streams ? this.#stepByStreaming(batch) : this.#stepWithRanks(batch));
      this.#mover.stepDone();
      return logits;
    } catch (error) {
      // A step that was refused has changed nothing; after anything else the two may disagree on where they are.
      if (!(error instanceof RangeError)) this.#failure = error;
      throw error;
    }
  }

  async #stepByStreaming(batch: StepBatch): Promise<Float32Array> {
    const logits = await this.#device.step(batch, ExpertsBy.Streaming);
    await this.#ranks.assertWhole();
    return logits;
  }

  /** Both sides at once. Whoever fails first releases the other: neither waits for what will not come. */
  async #stepWithRanks(batch: StepBatch): Promise<Float32Array> {
    const release = (error: unknown): never => {
      this.#ranks.abort();
      throw error;
    };
    // The ranks first: they reset the words that the device sets.
    const served = this.#ranks.run(batch.tokens.length).catch(release);
    const computed = this.#device.step(batch, ExpertsBy.Ranks).catch(release);
    const [ofRanks, ofDevice] = await Promise.allSettled([served, computed]);
    // The device only knows that the ranks did not answer; they know why.
    if (ofRanks.status === 'rejected') throw ofRanks.reason;
    if (ofDevice.status === 'rejected') throw ofDevice.reason;
    if (!ofRanks.value) throw perigeeError('ENGINE_FAILED', { what: 'the device left the step before its last layer' });
    return ofDevice.value;
  }

  tap(name: TapName, layer: number): Float32Array | Int32Array {
    return this.#device.tap(name, layer);
  }

  stageTimes(): StageTime[] {
    return this.#device.stageTimes();
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#ranks.abort();
    await this.#running;
    await this.#mover.close();
    await this.#device.close(); // before the memory that it has pinned
    await this.#ranks.close();
  }
}
