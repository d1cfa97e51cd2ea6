/** The engine as native code: ranks are threads of the addon, and weights are read where the mapped files have them. */
import { GgmlType } from '../gguf/types.ts';
import type { ModelConfig } from '../model/config.ts';
import { fillVectors } from './bind.ts';
import { stages, vectorSlots } from './layout.ts';
import { type NativeOptions, NativeRanks } from './native-ranks.ts';
import { activeBytes, weightBytes } from './place.ts';
import { checkStepSize, type Runtime, type RuntimeLimits, type StageTime, type StepBatch } from './runtime.ts';
import { type TapName, tapNames } from './taps.ts';

/** Loads the model and starts the ranks. */
export async function startNative(options: NativeOptions): Promise<Runtime> {
  const ranks = await NativeRanks.start(options, 'model', ({ engine }) =>
    fillVectors(options, (slot, layer, tensor, raw) =>
      engine.setVector(vectorSlots.indexOf(slot), layer, GgmlType[tensor.type], raw),
    ),
  );
  return new NativeRuntime(options, ranks);
}

class NativeRuntime implements Runtime {
  readonly backend = 'native';
  readonly isa: string;
  readonly threads: number;
  readonly config: ModelConfig;
  readonly limits: RuntimeLimits;
  readonly weightBytes: number;
  readonly activeWeightBytes: number;
  readonly #ranks: NativeRanks;
  readonly #logits: Float32Array;
  #tokensInStep = 0;

  constructor(options: NativeOptions, ranks: NativeRanks) {
    this.config = options.config;
    this.limits = options.limits;
    this.threads = options.threads;
    this.isa = ranks.isa;
    this.weightBytes = weightBytes(options.tensors);
    this.activeWeightBytes = activeBytes(options.config, options.tensors);
    this.#ranks = ranks;
    this.#logits = ranks.engine.logits();
  }

  async step(batch: StepBatch): Promise<Float32Array> {
    this.#ranks.assertOpen();
    checkStepSize(batch, this.limits);
    const { tokens, positions, sequences, pageTables, outputs } = batch;
    await this.#ranks.expectDone(await this.#ranks.engine.step(tokens, positions, sequences, pageTables, outputs));
    this.#tokensInStep = tokens.length;
    return this.#logits.subarray(0, outputs.length * this.config.vocabulary);
  }

  tap(name: TapName, layer: number): Float32Array | Int32Array {
    this.#ranks.assertOpen();
    const copy = this.#ranks.engine.tap(tapNames.indexOf(name), layer, this.#tokensInStep);
    if (copy === null) throw new RangeError(`there is no tap ${name} of layer ${layer}`);
    return name === 'router-choices' ? new Int32Array(copy) : new Float32Array(copy);
  }

  stageTimes(): StageTime[] {
    const times = this.#ranks.engine.stageTimes();
    return stages.map((stage, index) => ({ stage, milliseconds: times[index] ?? 0 }));
  }

  close(): Promise<void> {
    return this.#ranks.close();
  }
}
