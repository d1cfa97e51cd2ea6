/** The engine in WebAssembly: ranks are Piscina workers, the state memory is shared, each rank owns its shards. */
import { readFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { Piscina } from 'piscina';
import { type CoreExports, firstStackTop, instantiate, sharedMemory, stackBytes } from '../../wasm/core.ts';
import type { RankFailure } from '../../wasm/rank.ts';
import { Control, controlWords, type RankTask } from '../../wasm/rank-task.ts';
import { PerigeeError, perigeeError } from '../errors.ts';
import { alignUp } from '../gguf/sizes.ts';
import type { ModelConfig } from '../model/config.ts';
import { entryFile } from './assets.ts';
import { bindRanks, fillVectors, vectorsInto } from './bind.ts';
import { type EngineLimits, stages, statuses, stepFields, stepWords, writeConfig } from './layout.ts';
import { activeBytes, placeShards, weightBytes } from './place.ts';
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

export interface WasmOptions extends StartOptions {
  /** Path of the compiled core. */
  readonly core: string;
  /** Most bytes of one weight memory. */
  readonly shardBytes: number;
}

/** How often a barrier looks before it sleeps; measured on 2 idle cores, see wasm/README.md. */
const spins = 100;
const progressMilliseconds = 100;
/** What the engine asks of its arena. */
const arenaAlignment = 4096;

/** Loads the model and starts the ranks. */
export async function startWasm(options: WasmOptions): Promise<Runtime> {
  const module = await WebAssembly.compile(await readFile(options.core));
  const runtime = new WasmRuntime(module, options);
  try {
    await runtime.load(options);
  } catch (error) {
    await runtime.close();
    throw error;
  }
  return runtime;
}

class WasmRuntime implements Runtime {
  readonly backend = 'wasm';
  readonly isa: string;
  readonly threads: number;
  readonly config: ModelConfig;
  readonly limits: RuntimeLimits;
  readonly weightBytes: number;
  readonly activeWeightBytes: number;
  readonly #core: CoreExports;
  readonly #memory: WebAssembly.Memory;
  readonly #scratch: number;
  readonly #engine: number;
  readonly #control: Int32Array;
  readonly #stageTimes: Float64Array;
  readonly #step: StepViews;
  readonly #pool: Piscina;
  readonly #tasks: readonly RankTask[];
  #failure: Promise<never> | null = null;
  #failed = false;
  #sequence = 0;
  #tokensInStep = 0;

  constructor(module: WebAssembly.Module, options: WasmOptions) {
    const { config, threads } = options;
    this.config = config;
    this.limits = options.limits;
    this.threads = threads;
    this.weightBytes = weightBytes(options.tensors);
    this.activeWeightBytes = activeBytes(config, options.tensors);
    const limits: EngineLimits = {
      ...options.limits,
      ranks: threads,
      pageTokens,
      exact: options.exact,
      taps: options.taps,
      expertsOnly: false,
      spins: threads <= availableParallelism() ? spins : 0,
    };
    const state = allocateState(module, config, limits);
    const { core, memory } = state;
    this.#core = core;
    this.#memory = memory;
    this.#scratch = state.scratch;
    const isaIndex = findIsa(core, memory, options.isa);
    this.#engine = createEngine(core, memory, state, isaIndex);
    this.isa = readString(memory, core.isa_name(isaIndex));
    this.#control = new Int32Array(memory.buffer, state.control, controlWords(threads));
    this.#stageTimes = new Float64Array(memory.buffer, state.stageTimes, threads * stages.length);
    this.#step = stepViews(core, memory, this.#engine, config, options.limits);
    const callBytes = {
      input: core.engine_input_bytes(state.config, state.limits),
      output: core.engine_output_bytes(state.config, state.limits),
    };
    const placed = placeShards(config, options.tensors, options.recipes, threads, {
      begin: firstStackTop(core),
      call: callBytes,
      batchTokens: options.limits.batchTokens,
      most: options.shardBytes,
    });
    bindRanks(core, memory, this.#engine, placed);
    this.#tasks = placed.map(({ shards }, rank) => ({
      rank,
      ranks: threads,
      module,
      isaIndex,
      state: memory,
      stackTop: state.stackTop + (rank + 1) * stackBytes,
      engine: this.#engine,
      control: state.control,
      stageTimes: state.stageTimes + rank * stages.length * Float64Array.BYTES_PER_ELEMENT,
      files: options.files,
      shards,
    }));
    this.#pool = new Piscina({
      filename: entryFile('wasm/rank'),
      name: 'runRank',
      minThreads: threads,
      maxThreads: threads,
      concurrentTasksPerWorker: 1,
      atomics: 'disabled',
    });
  }

  /** Reads the norms here and the matrices in the ranks; resolves when every rank is ready for steps. */
  async load(options: WasmOptions): Promise<void> {
    const bytesTotal = this.weightBytes;
    this.#failure = this.#startRanks();
    await fillVectors(options, vectorsInto(this.#core, this.#memory, this.#engine, this.#scratch));
    const timer = setInterval(
      () => options.onProgress({ bytesRead: this.#bytesLoaded(), bytesTotal }),
      progressMilliseconds,
    );
    try {
      for (let loaded = 0; loaded < this.threads; loaded = Atomics.load(this.#control, Control.Loaded)) {
        await this.#wordChange(Control.Loaded, loaded);
      }
    } finally {
      clearInterval(timer);
    }
    options.onProgress({ bytesRead: bytesTotal, bytesTotal });
  }

  async step(batch: StepBatch): Promise<Float32Array> {
    if (this.#failed) await this.#failure;
    this.#step.write(batch);
    const status = this.#core.engine_check_step(this.#engine);
    if (status !== 0) throw new RangeError(`the step was refused: ${statuses[status]}`);
    this.#tokensInStep = batch.tokens.length;
    const before = this.#sequence++;
    Atomics.store(this.#control, Control.Sequence, this.#sequence);
    Atomics.notify(this.#control, Control.Sequence);
    while (Atomics.load(this.#control, Control.Done) !== this.#sequence) await this.#wordChange(Control.Done, before);
    return this.#step.logits.subarray(0, batch.outputs.length * this.config.vocabulary);
  }

  tap(name: TapName, layer: number): Float32Array | Int32Array {
    const at = this.#core.engine_tap(this.#engine, tapNames.indexOf(name), layer, this.#scratch);
    if (at === 0) throw new RangeError(`there is no tap ${name} of layer ${layer}`);
    const length = this.#tokensInStep * new DataView(this.#memory.buffer).getUint32(this.#scratch, true);
    const { buffer } = this.#memory;
    return name === 'router-choices'
      ? new Int32Array(buffer, at, length).slice()
      : new Float32Array(buffer, at, length).slice();
  }

  stageTimes(): StageTime[] {
    return stages.map((stage, index) => ({ stage, milliseconds: this.#stageTimes[index] ?? 0 }));
  }

  async close(): Promise<void> {
    this.#failed = true;
    Atomics.store(this.#control, Control.Quit, 1);
    Atomics.add(this.#control, Control.Sequence, 1);
    Atomics.notify(this.#control, Control.Sequence);
    this.#core.engine_abort(this.#engine);
    await this.#pool.destroy();
  }

  /** Rejects when any rank ends before it was told to, and lets the others out of their barriers. */
  #startRanks(): Promise<never> {
    const run = async (task: RankTask): Promise<never> => {
      const failure: RankFailure | null = await this.#pool.run(task);
      throw failure
        ? new PerigeeError(failure.code, failure.message)
        : perigeeError('ENGINE_FAILED', { what: 'it was closed' });
    };
    const failure = Promise.all(this.#tasks.map(run)).then(
      ([ended]) => ended as never,
      (cause: unknown) => {
        this.#failed = true;
        this.#core.engine_abort(this.#engine);
        if (cause instanceof PerigeeError) throw cause;
        const what = cause instanceof Error ? cause.message : String(cause);
        throw perigeeError('ENGINE_FAILED', { what: `a rank stopped (${what})` }, { cause });
      },
    );
    failure.catch(() => {}); // heard by whoever waits next
    return failure;
  }

  /** Resolves when a control word may no longer be `expected`; rejects when a rank has failed. */
  async #wordChange(word: number, expected: number): Promise<void> {
    const waiting = Atomics.waitAsync(this.#control, word, expected);
    if (waiting.async) await Promise.race([waiting.value, this.#failure]);
  }

  #bytesLoaded(): number {
    let kibibytes = 0;
    for (let rank = 0; rank < this.threads; rank++) kibibytes += Atomics.load(this.#control, Control.FirstRank + rank);
    return Math.min(kibibytes * 1024, this.weightBytes);
  }
}

interface State {
  readonly core: CoreExports;
  readonly memory: WebAssembly.Memory;
  /** Addresses of the config and limits structs, a vector's worth of scratch, the control block, the stage times, the ranks' stacks and the engine. */
  readonly config: number;
  readonly limits: number;
  readonly scratch: number;
  readonly control: number;
  readonly stageTimes: number;
  readonly stackTop: number;
  readonly arena: number;
  readonly arenaBytes: number;
}

/** Measures the engine on a throw-away memory, then lays out the real one: data, structs, control, stacks, engine. */
function allocateState(module: WebAssembly.Module, config: ModelConfig, limits: EngineLimits): State {
  const trial = sharedMemory(1 << 20);
  const measure = instantiate(module, trial);
  const base = firstStackTop(measure);
  const structs = writeConfig(trial.buffer, base, config, limits);
  const arenaBytes = measure.engine_bytes(structs.config, structs.limits);
  if (arenaBytes === 0) throw perigeeError('MODEL_SHAPE_REFUSED', { name: config.name });
  const scratch = alignUp(structs.end, 64);
  const longestVector = Math.max(config.hidden, config.qRank, config.kvRank, config.experts);
  const control = alignUp(scratch + longestVector * Float32Array.BYTES_PER_ELEMENT, 64);
  const stageTimes = alignUp(control + controlWords(limits.ranks) * 4, 64);
  const stackTop = alignUp(stageTimes + limits.ranks * stages.length * 8, 64);
  const arena = alignUp(stackTop + limits.ranks * stackBytes, arenaAlignment);
  if (arena + arenaBytes > 2 ** 32) {
    throw perigeeError('CONTEXT_TOO_LARGE', { context: limits.context, bytes: arena + arenaBytes, most: 2 ** 32 });
  }
  const memory = sharedMemory(arena + arenaBytes);
  const core = instantiate(module, memory);
  writeConfig(memory.buffer, base, config, limits);
  return { core, memory, ...structs, scratch, control, stageTimes, stackTop, arena, arenaBytes };
}

function createEngine(core: CoreExports, memory: WebAssembly.Memory, state: State, isaIndex: number): number {
  const status = core.engine_create(
    state.arena,
    state.arenaBytes,
    state.config,
    state.limits,
    core.isa_name(isaIndex),
    state.scratch,
  );
  if (status !== 0) throw new Error(`engine_create: ${statuses[status]}`);
  return new DataView(memory.buffer).getUint32(state.scratch, true);
}

/** The index of the kernel table called `isa`, or of the fastest one. */
function findIsa(core: CoreExports, memory: WebAssembly.Memory, isa: string | null): number {
  if (isa === null) return 0;
  const names: string[] = [];
  for (let index = 0; core.isa_name(index) !== 0; index++) {
    const name = readString(memory, core.isa_name(index));
    if (name === isa) return index;
    names.push(name);
  }
  throw perigeeError('BACKEND_UNAVAILABLE', { backend: `wasm ${isa}`, why: `this build has ${names.join(', ')}` });
}

function readString(memory: WebAssembly.Memory, address: number): string {
  const bytes = new Uint8Array(memory.buffer, address);
  return Buffer.from(bytes.slice(0, bytes.indexOf(0))).toString('latin1');
}

/** Typed views of the step block. */
interface StepViews {
  readonly logits: Float32Array;
  write(batch: StepBatch): void;
}

function stepViews(
  core: CoreExports,
  memory: WebAssembly.Memory,
  engine: number,
  config: ModelConfig,
  limits: RuntimeLimits,
): StepViews {
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
