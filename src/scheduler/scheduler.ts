/** The loop that turns requests into engine steps: admit, plan, make room, step, sample; for as long as there is work. */
import { setImmediate as turnOfEventLoop } from 'node:timers/promises';
import type { ConstraintRun, ConstraintSpec, Constraints } from '../constrain/types.ts';
import { PerigeeError, perigeeError } from '../errors.ts';
import { pageTokens, type Runtime } from '../runtime/runtime.ts';
import { createSampler } from '../sampling/sampler.ts';
import { PageTable, pagesToStart } from './page-table.ts';
import { PagePool, pagesFor } from './pages.ts';
import { PrefixCache } from './prefix-cache.ts';
import { patienceMilliseconds, Sequence } from './sequence.ts';
import { planStep, type StepPart, stepBatch } from './step-plan.ts';
import type {
  EngineClient,
  EngineStatistics,
  EngineStatus,
  GenerationEvent,
  GenerationRequest,
  RequestLimits,
} from './types.ts';

/** Requests that may wait: minutes of work for any model worth serving, so a longer queue would only time out. */
const defaultQueueLength = 64;

export interface SchedulerOptions extends RequestLimits {
  readonly selection: EngineStatus['selection'];
  /** What holds answers to schemas; the scheduler closes it. Absent: nothing does. */
  readonly constraints?: Constraints | undefined;
}

/** Makes a loaded runtime an engine one can talk to. The scheduler owns the runtime from here on and closes it. */
export function createScheduler(runtime: Runtime, options: SchedulerOptions): EngineClient {
  return new Scheduler(runtime, options);
}

class Scheduler implements EngineClient {
  readonly contextTokens: number;
  readonly #runtime: Runtime;
  readonly #options: SchedulerOptions;
  /** Most sequences that run at once. In a step each may need a token and a row of logits. */
  readonly #places: number;
  readonly #pool: PagePool;
  readonly #cache: PrefixCache;
  /** Both in the order of arrival. A sequence that had to give its pages away waits again, at its old place. */
  readonly #waiting: Sequence[] = [];
  readonly #running: Sequence[] = [];
  #submitted = 0;
  #promptTokens = 0;
  #cachedTokens = 0;
  #preemptions = 0;
  #steps = 0;
  /** Tokens of the step under way; 0: none is. */
  #stepTokens = 0;
  #state: 'ready' | 'failed' | 'closed' = 'ready';
  #failure: PerigeeError | null = null;
  #loop: Promise<void> | null = null;
  #patience: NodeJS.Timeout | null = null;

  constructor(runtime: Runtime, options: SchedulerOptions) {
    const { limits } = runtime;
    this.#runtime = runtime;
    this.#options = options;
    this.#places = Math.min(limits.batchSequences, limits.batchOutputs, limits.batchTokens);
    this.#pool = new PagePool(limits.pages);
    this.#cache = new PrefixCache(this.#pool);
    this.contextTokens = Math.min(limits.context, limits.pages * pageTokens);
  }

  get config() {
    return this.#runtime.config;
  }

  async *generate(request: GenerationRequest, signal?: AbortSignal): AsyncGenerator<GenerationEvent, void, undefined> {
    signal?.throwIfAborted();
    this.#check(request);
    const constraint = request.constraint ? await this.#constrain(request.constraint) : null;
    try {
      yield* this.#generate(request, constraint, signal);
    } finally {
      constraint?.close();
    }
  }

  async *#generate(
    request: GenerationRequest,
    constraint: ConstraintRun | null,
    signal?: AbortSignal,
  ): AsyncGenerator<GenerationEvent, void, undefined> {
    signal?.throwIfAborted();
    const sequence = this.#submit(request, constraint);
    const abort = () => this.#cancel(sequence, signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    const deadline = this.#startDeadline(sequence);
    try {
      yield* sequence.events.read();
    } finally {
      clearTimeout(deadline);
      signal?.removeEventListener('abort', abort);
      this.#cancel(sequence, null);
    }
  }

  status(): EngineStatus {
    return {
      state: this.#state,
      selection: this.#options.selection,
      running: this.#live(),
      waiting: this.#waiting.length,
      statistics: this.#statistics(),
      restarts: 0,
      failures: 0,
      restartsIn: null,
      lastFailure: this.#failure?.message ?? null,
    };
  }

  async close(): Promise<void> {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#drop(perigeeError('ENGINE_CLOSED', {}));
    if (this.#patience !== null) clearTimeout(this.#patience);
    await this.#loop;
    await this.#options.constraints?.close();
    await this.#runtime.close();
  }

  #statistics(): EngineStatistics {
    const [free, cached] = [this.#pool.free, this.#cache.idle];
    return {
      pages: { used: this.#runtime.limits.pages - free - cached, cached, free },
      prefixes: { promptTokens: this.#promptTokens, cachedTokens: this.#cachedTokens },
      preemptions: this.#preemptions,
      step: this.#stepTokens === 0 ? null : { number: this.#steps, tokens: this.#stepTokens },
    };
  }

  /** Without means to hold answers to anything, calls that nobody insists on are as free as text. */
  async #constrain(spec: ConstraintSpec): Promise<ConstraintRun | null> {
    const { constraints } = this.#options;
    if (constraints !== undefined) return constraints.open(spec, () => this.#kick());
    if (spec.answer === null && spec.calls?.required !== true) return null;
    throw perigeeError('CONSTRAINT_UNAVAILABLE', { why: 'this engine has no grammars for its vocabulary' });
  }

  #check(request: GenerationRequest): void {
    if (this.#state === 'closed') throw perigeeError('ENGINE_CLOSED', {});
    if (this.#failure !== null) throw this.#failure;
    checkRequest(request, this.contextTokens, this.config.vocabulary);
    const queueLength = this.#options.queueLength ?? defaultQueueLength;
    if (this.#live() + this.#waiting.length >= this.#places + queueLength) {
      throw perigeeError('QUEUE_FULL', { waiting: this.#waiting.length });
    }
  }

  #submit(request: GenerationRequest, constraint: ConstraintRun | null): Sequence {
    this.#check(request);
    const sequence = new Sequence({
      request,
      order: this.#submitted++,
      sampler: createSampler(request.sampling, request.prompt),
      constraint,
      table: new PageTable(this.#pool, this.#cache),
      drained: () => this.#kick(),
    });
    this.#waiting.push(sequence);
    this.#kick();
    return sequence;
  }

  #startDeadline(sequence: Sequence): NodeJS.Timeout | undefined {
    const { deadlineMilliseconds } = this.#options;
    if (deadlineMilliseconds === undefined) return undefined;
    const seconds = deadlineMilliseconds / 1000;
    return setTimeout(
      () => this.#cancel(sequence, perigeeError('DEADLINE_EXCEEDED', { seconds })),
      deadlineMilliseconds,
    );
  }

  /** Running sequences that somebody still waits for; a cancelled one leaves after the step under way. */
  #live(): number {
    return this.#running.filter((sequence) => !sequence.cancelled).length;
  }

  #cancel(sequence: Sequence, reason: unknown): void {
    sequence.cancelled = true;
    sequence.events.fail(reason);
    if (this.#waiting.includes(sequence)) remove(this.#waiting, sequence);
    if (this.#running.includes(sequence)) this.#kick();
  }

  #kick(): void {
    this.#loop ??= this.#run();
  }

  /** Steps for as long as some sequence can go on: has work, and a consumer that keeps up. */
  async #run(): Promise<void> {
    try {
      for (;;) {
        // Cancels and new requests that arrived during the step are heard before the next one.
        await turnOfEventLoop();
        if (this.#state !== 'ready') return;
        for (const sequence of this.#running.filter((each) => each.cancelled)) this.#retire(sequence);
        for (const sequence of this.#running.filter((each) => each.resumable)) {
          this.#advance(sequence, () => sequence.resume(this.contextTokens));
        }
        this.#admit();
        const parts = this.#makeRoom(this.#plan());
        if (parts.length === 0) {
          this.#waitForReaders();
          return;
        }
        await this.#step(parts);
      }
    } catch (cause) {
      this.#fail(cause);
    } finally {
      this.#loop = null;
    }
  }

  /** If readers that lag keep others from starting, looks again when they count as stopped. */
  #waitForReaders(): void {
    if (this.#waiting.length === 0 || this.#patience !== null) return;
    this.#patience = setTimeout(() => {
      this.#patience = null;
      this.#kick();
    }, patienceMilliseconds);
  }

  /** Starts what waits, in the order of arrival. Who has stopped reading makes way for the others. */
  #admit(): void {
    for (;;) {
      const next = this.#waiting.find((sequence) => !sequence.paused);
      if (next === undefined) return;
      while (!this.#hasRoomFor(next)) {
        const stopped = this.#running.findLast((sequence) => sequence.stopped);
        if (stopped === undefined) return;
        this.#preempt(stopped);
      }
      remove(this.#waiting, next);
      this.#start(next);
    }
  }

  /**
   * A sequence starts when there are pages for what it has to compute, beside those that the running ones still need for that
   * and one more for each to grow into. Alone it always fits.
   */
  #hasRoomFor(sequence: Sequence): boolean {
    if (this.#running.length === 0) return true;
    if (this.#running.length >= this.#places) return false;
    let reserved = 0;
    for (const { tokens, table } of this.#running) reserved += pagesFor(tokens.length + 1) - table.pages.length + 1;
    const needed = sequence.scoring ? pagesFor(sequence.tokens.length + 1) : pagesToStart(this.#cache, sequence.tokens);
    return needed + reserved <= this.#pool.free + this.#cache.idle;
  }

  #start(sequence: Sequence): void {
    const again = sequence.started;
    sequence.start();
    insert(this.#running, sequence);
    if (again) return;
    this.#promptTokens += sequence.tokens.length;
    this.#cachedTokens += sequence.computed;
  }

  #plan(): StepPart[] {
    const active = this.#running.filter((sequence) => !sequence.paused);
    for (const sequence of active) sequence.catchUp();
    return planStep(active, this.#runtime.limits);
  }

  /**
   * Gives every part the pages it writes to, the oldest sequence first. Where they run out, one who stopped reading makes way, else
   * the youngest: so the oldest always goes on. Returns the parts of those that still run.
   */
  #makeRoom(parts: readonly StepPart[]): StepPart[] {
    for (const { sequence, count } of parts.toSorted((a, b) => a.sequence.order - b.sequence.order)) {
      while (this.#running.includes(sequence) && !sequence.table.reach(sequence.computed + count)) {
        this.#preempt(this.#running.findLast((each) => each.stopped) ?? (this.#running.at(-1) as Sequence));
      }
    }
    return parts.filter(({ sequence }) => this.#running.includes(sequence));
  }

  async #step(parts: readonly StepPart[]): Promise<void> {
    const batch = stepBatch(parts);
    this.#steps++;
    this.#stepTokens = batch.tokens.length;
    const logits = await this.#runtime.step(batch);
    this.#stepTokens = 0;
    const { vocabulary } = this.config;
    let row = 0;
    for (const { sequence, count } of parts) {
      const rows = sequence.outputs(count).map(() => logits.subarray(row * vocabulary, ++row * vocabulary));
      sequence.computedMore(count);
      const next = sequence.pending === 0 ? rows.pop() : undefined;
      if (sequence.cancelled) continue;
      sequence.score(rows);
      if (next === undefined) continue;
      this.#advance(sequence, () => sequence.advance(next, this.contextTokens));
    }
  }

  /** Has a sequence choose its next token; `choose` returns true when that ended it. */
  #advance(sequence: Sequence, choose: () => boolean): void {
    try {
      if (choose()) this.#retire(sequence);
    } catch (error) {
      // What a sampler cannot do is that request's affair, not the engine's.
      sequence.events.fail(error);
      this.#retire(sequence);
    }
  }

  #retire(sequence: Sequence): void {
    remove(this.#running, sequence);
    sequence.leavePages();
  }

  #preempt(sequence: Sequence): void {
    this.#retire(sequence);
    insert(this.#waiting, sequence);
    this.#preemptions++;
  }

  #fail(cause: unknown): void {
    this.#state = 'failed';
    this.#failure = asEngineFailure(cause);
    this.#drop(this.#failure);
  }

  #drop(error: PerigeeError): void {
    for (const sequence of [...this.#running.splice(0), ...this.#waiting.splice(0)]) sequence.events.fail(error);
  }
}

function insert(sequences: Sequence[], sequence: Sequence): void {
  const after = sequences.findLastIndex(({ order }) => order < sequence.order);
  sequences.splice(after + 1, 0, sequence);
}

function remove(sequences: Sequence[], sequence: Sequence): void {
  sequences.splice(sequences.indexOf(sequence), 1);
}

function asEngineFailure(cause: unknown): PerigeeError {
  if (cause instanceof PerigeeError) return cause;
  return perigeeError('ENGINE_FAILED', { what: cause instanceof Error ? cause.message : String(cause) }, { cause });
}

/** What must hold before token ids reach the core. */
function checkRequest(request: GenerationRequest, contextTokens: number, vocabulary: number): void {
  const { prompt } = request;
  if (prompt.length === 0) throw perigeeError('PROMPT_EMPTY', {});
  if (prompt.length >= contextTokens) {
    throw perigeeError('CONTEXT_LENGTH_EXCEEDED', { promptTokens: prompt.length, contextTokens });
  }
  const stray = prompt.find((token) => !Number.isInteger(token) || token < 0 || token >= vocabulary);
  if (stray !== undefined) throw perigeeError('TOKEN_OUT_OF_RANGE', { token: stray, vocabulary });
  if (!Number.isInteger(request.maxTokens) || request.maxTokens < 1) {
    throw perigeeError('MAX_TOKENS_INVALID', { maxTokens: request.maxTokens });
  }
}
