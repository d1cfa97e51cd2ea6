/** The engine in WebAssembly: ranks are Piscina workers, the state memory is shared, each rank owns its shards. */
import type { ModelConfig } from '../model/config.ts';
import { fillVectors, vectorsInto } from './bind.ts';
import { stages, statuses, stepFields, stepWords } from './layout.ts';
import { activeBytes, weightBytes } from './place.ts';
import { checkStepSize, type Runtime, type RuntimeLimits, type StageTime, type StepBatch } from './runtime.ts';
import { type TapName, tapNames } from './taps.ts';
import { type WasmOptions, WasmRanks } from './wasm-ranks.ts';

/** Loads the model and starts the ranks. */
export async function startWasm(options: WasmOptions): Promise<Runtime> {
  const ranks = await WasmRanks.start(options, 'model', ({ core, memory, engine, scratch }) =>
    fillVectors(options, vectorsInto(core, memory, engine, scratch)),
  );
  return new WasmRuntime(options, ranks);
}

class WasmRuntime implements Runtime {
  readonly backend = 'wasm';
  readonly isa: string;
  readonly threads: number;
  readonly config: ModelConfig;
  readonly limits: RuntimeLimits;
  readonly weightBytes: number;
  readonly activeWeightBytes: number;
  readonly #ranks: WasmRanks;
  readonly #step: StepViews;
  #tokensInStep = 0;

  constructor(options: WasmOptions, ranks: WasmRanks) {
    this.config = options.config;
    this.limits = options.limits;
    this.threads = options.threads;
    this.isa = ranks.isa;
    this.weightBytes = weightBytes(options.tensors);
    this.activeWeightBytes = activeBytes(options.config, options.tensors);
    this.#ranks = ranks;
    this.#step = stepViews(ranks, options.config, options.limits);
  }

  async step(batch: StepBatch): Promise<Float32Array> {
    if (this.#ranks.failure) await this.#ranks.failure;
    this.#step.write(batch);
    const status = this.#ranks.core.engine_check_step(this.#ranks.engine);
    if (status !== 0) throw new RangeError(`the step was refused: ${statuses[status]}`);
    this.#tokensInStep = batch.tokens.length;
    await this.#ranks.runStep();
    return this.#step.logits.subarray(0, batch.outputs.length * this.config.vocabulary);
  }

  tap(name: TapName, layer: number): Float32Array | Int32Array {
    const { core, engine, memory, scratch } = this.#ranks;
    const at = core.engine_tap(engine, tapNames.indexOf(name), layer, scratch);
    if (at === 0) throw new RangeError(`there is no tap ${name} of layer ${layer}`);
    const length = this.#tokensInStep * new DataView(memory.buffer).getUint32(scratch, true);
    return name === 'router-choices'
      ? new Int32Array(memory.buffer, at, length).slice()
      : new Float32Array(memory.buffer, at, length).slice();
  }

  stageTimes(): StageTime[] {
    const times = this.#ranks.stageTimes();
    return stages.map((stage, index) => ({ stage, milliseconds: times[index] ?? 0 }));
  }

  close(): Promise<void> {
    return this.#ranks.close();
  }
}

/** Typed views of the step block. */
interface StepViews {
  readonly logits: Float32Array;
  write(batch: StepBatch): void;
}

function stepViews({ core, memory, engine }: WasmRanks, config: ModelConfig, limits: RuntimeLimits): StepViews {
  const block = new Uint32Array(memory.buffer, core.engine_step_block(engine), stepWords);
  const at = (field: number) => block[field] as number;
  const ints = (field: number, length: number) => new Int32Array(memory.buffer, at(field), length);
  const tokens = ints(stepFields.tokens, limits.batchTokens);
  const positions = ints(stepFields.positions, limits.batchTokens);
  const sequences = ints(stepFields.sequences, limits.batchTokens);
  const stride = at(stepFields.tableStride);
  const tables = ints(stepFields.pageTables, limits.batchSequences * stride);
  const outputs = ints(stepFields.outputs, limits.batchOutputs);
  return {
    logits: new Float32Array(memory.buffer, at(stepFields.logits), limits.batchOutputs * config.vocabulary),
    write(batch) {
      checkStepSize(batch, limits);
      tokens.set(batch.tokens);
      positions.set(batch.positions);
      sequences.set(batch.sequences);
      for (const [index, table] of batch.pageTables.entries()) tables.set(table, index * stride);
      outputs.set(batch.outputs);
      block[stepFields.tokensCount] = batch.tokens.length;
      block[stepFields.outputsCount] = batch.outputs.length;
      block[stepFields.sequencesCount] = batch.pageTables.length;
    },
  };
}
