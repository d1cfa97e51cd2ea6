/** Ranks as Piscina workers: the state memory is shared, each rank owns its shards. */
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
import { bindRanks } from './bind.ts';
import { type EngineLimits, stages, statuses, writeConfig } from './layout.ts';
import { type PlacedRank, placeShards, type Role, weightBytes } from './place.ts';
import { pageTokens, type StartOptions } from './runtime.ts';

export interface WasmOptions extends StartOptions {
  /** Path of the compiled core. */
  readonly core: string;
  /** Most bytes of one weight memory. */
  readonly shardBytes: number;
}

/** How often a barrier looks before it sleeps; measured on 2 idle cores, see wasm/README.md. */
const spins = 100;
/**
 * The same while a device computes between the experts of two layers, some 40 microseconds for one token: waking from a look
 * takes less than one, from sleep 5 to 25.
 */
const expertSpins = 100_000;
const progressMilliseconds = 100;
/** What the engine asks of its arena. */
const arenaAlignment = 4096;

export class WasmRanks {
  readonly isa: string;
  readonly threads: number;
  readonly core: CoreExports;
  readonly memory: WebAssembly.Memory;
  readonly engine: number;
  /** Room for a vector, for whoever calls the core from here. */
  readonly scratch: number;
  readonly placed: readonly PlacedRank[];
  readonly tasks: readonly RankTask[];
  readonly #bytesTotal: number;
  readonly #control: Int32Array;
  readonly #stageTimes: Float64Array;
  readonly #pool: Piscina;
  #failure: Promise<never> | null = null;
  #failed = false;
  #sequence = 0;

  /** Loads what the role needs and starts the ranks. */
  static async start(options: WasmOptions, role: Role, setVectors?: (ranks: WasmRanks) => Promise<void>) {
    const ranks = new WasmRanks(await WebAssembly.compile(await readFile(options.core)), options, role);
    try {
      await ranks.#load(options, setVectors);
    } catch (error) {
      await ranks.close();
      throw error;
    }
    return ranks;
  }

  private constructor(module: WebAssembly.Module, options: WasmOptions, role: Role) {
    const { config, threads } = options;
    this.threads = threads;
    this.#bytesTotal = weightBytes(options.tensors, role);
    const limits: EngineLimits = {
      ...options.limits,
      ranks: threads,
      pageTokens,
      exact: options.exact,
      taps: options.taps && role === 'model',
      spins: threads > availableParallelism() ? 0 : role === 'experts' ? expertSpins : spins,
      expertsOnly: role === 'experts',
    };
    const state = allocateState(module, config, limits);
    const { core, memory } = state;
    this.core = core;
    this.memory = memory;
    this.scratch = state.scratch;
    const isaIndex = findIsa(core, memory, options.isa);
    this.engine = createEngine(core, memory, state, isaIndex);
    this.isa = readString(memory, core.isa_name(isaIndex));
    this.#control = new Int32Array(memory.buffer, state.control, controlWords(threads));
    this.#stageTimes = new Float64Array(memory.buffer, state.stageTimes, threads * stages.length);
    const callBytes = {
      input: core.engine_input_bytes(state.config, state.limits),
      output: core.engine_output_bytes(state.config, state.limits),
    };
    this.placed = placeShards(config, options.tensors, options.recipes, role, threads, {
      begin: firstStackTop(core),
      call: callBytes,
      batchTokens: options.limits.batchTokens,
      most: options.shardBytes,
    });
    bindRanks(core, memory, this.engine, this.placed);
    this.tasks = this.placed.map(({ shards }, rank) => ({
      rank,
      ranks: threads,
      module,
      isaIndex,
      state: memory,
      stackTop: state.stackTop + (rank + 1) * stackBytes,
      engine: this.engine,
      control: state.control,
      stageTimes: state.stageTimes + rank * stages.length * Float64Array.BYTES_PER_ELEMENT,
      files: options.files,
      // A device reads experts where they lie, so their memories are made here.
      shards:
        role === 'experts' ? shards.map((shard) => ({ ...shard, memory: sharedMemory(shard.memoryBytes) })) : shards,
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

  /** What rejects once a rank has failed or the engine was closed; null until then. */
  get failure(): Promise<never> | null {
    return this.#failed ? this.#failure : null;
  }

  /** Lets the ranks run the step that has been written; resolves when all have finished. */
  async runStep(): Promise<void> {
    const before = this.#sequence++;
    Atomics.store(this.#control, Control.Sequence, this.#sequence);
    Atomics.notify(this.#control, Control.Sequence);
    while (Atomics.load(this.#control, Control.Done) !== this.#sequence) await this.#wordChange(Control.Done, before);
  }

  /** Milliseconds of the first rank by stage. */
  stageTimes(): Float64Array {
    return this.#stageTimes.subarray(0, stages.length);
  }

  async close(): Promise<void> {
    this.#failed = true;
    Atomics.store(this.#control, Control.Quit, 1);
    Atomics.add(this.#control, Control.Sequence, 1);
    Atomics.notify(this.#control, Control.Sequence);
    this.core.engine_abort(this.engine);
    await this.#pool.destroy();
  }

  /** Reads the matrices in the ranks; resolves when every rank is ready for steps. */
  async #load(options: WasmOptions, setVectors?: (ranks: WasmRanks) => Promise<void>): Promise<void> {
    const bytesTotal = this.#bytesTotal;
    this.#failure = this.#startRanks();
    await setVectors?.(this);
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

  /** Rejects when any rank ends before it was told to, and lets the others out of their barriers. */
  #startRanks(): Promise<never> {
    const run = async (task: RankTask): Promise<never> => {
      const failure: RankFailure | null = await this.#pool.run(task);
      throw failure
        ? new PerigeeError(failure.code, failure.message)
        : perigeeError('ENGINE_FAILED', { what: 'it was closed' });
    };
    const failure = Promise.all(this.tasks.map(run)).then(
      ([ended]) => ended as never,
      (cause: unknown) => {
        this.#failed = true;
        this.core.engine_abort(this.engine);
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
    return Math.min(kibibytes * 1024, this.#bytesTotal);
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
