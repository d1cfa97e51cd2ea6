/**
 * The loop that turns requests into engine steps. One request generates at a time for now; the plan of a step, the page
 * tables and the loop already speak of many, so that continuous batching changes the admission and nothing else.
 */
import { setImmediate as turnOfEventLoop } from 'node:timers/promises';
import { PerigeeError, perigeeError } from '../errors.ts';
import { pageTokens, type Runtime } from '../runtime/runtime.ts';
import { createSampler } from '../sampling/sampler.ts';
import { PagePool, pagesFor } from './pages.ts';
import { PrefixCache } from './prefix-cache.ts';
import { Sequence } from './sequence.ts';
import { planStep, type StepPart, stepBatch } from './step-plan.ts';
import type { EngineClient, EngineStatus, GenerationEvent, GenerationRequest } from './types.ts';

/** Sequences that may be in one step. */
const concurrentSequences = 1;

/** Requests that may wait: minutes of work for any model worth serving, so a longer queue would only time out. */
const defaultQueueLength = 64;

export interface SchedulerOptions {
  readonly selection: EngineStatus['selection'];
  readonly queueLength?: number | undefined;
}

/** Makes a loaded runtime an engine one can talk to. The scheduler owns the runtime from here on and closes it. */
export function createScheduler(runtime: Runtime, options: SchedulerOptions): EngineClient {
  return new Scheduler(runtime, options);
}

class Scheduler implements EngineClient {
  readonly contextTokens: number;
  readonly #runtime: Runtime;
  readonly #selection: EngineStatus['selection'];
  readonly #queueLength: number;
  readonly #pool: PagePool;
  readonly #cache: PrefixCache;
  readonly #waiting: Sequence[] = [];
  readonly #running: Sequence[] = [];
  #state: 'ready' | 'failed' | 'closed' = 'ready';
  #failure: PerigeeError | null = null;
  #loop: Promise<void> | null = null;

  constructor(runtime: Runtime, options: SchedulerOptions) {
    const { limits } = runtime;
    this.#runtime = runtime;
    this.#selection = options.selection;
    this.#queueLength = options.queueLength ?? defaultQueueLength;
    this.#pool = new PagePool(limits.pages);
    this.#cache = new PrefixCache(this.#pool);
    this.contextTokens = Math.min(limits.context, limits.pages * pageTokens);
  }

  get config() {
    return this.#runtime.config;
  }

  async *generate(request: GenerationRequest, signal?: AbortSignal): AsyncGenerator<GenerationEvent, void, undefined> {
    signal?.throwIfAborted();
    const sequence = this.#submit(request);
    const abort = () => this.#cancel(sequence, signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      yield* sequence.events.read();
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#cancel(sequence, null);
    }
  }

  status(): EngineStatus {
    return {
      state: this.#state,
      selection: this.#selection,
      running: this.#live(),
      waiting: this.#waiting.length,
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
    await this.#loop;
    await this.#runtime.close();
  }

  #submit(request: GenerationRequest): Sequence {
    if (this.#state === 'closed') throw perigeeError('ENGINE_CLOSED', {});
    if (this.#failure !== null) throw this.#failure;
    checkRequest(request, this.contextTokens, this.config.vocabulary);
    if (this.#live() + this.#waiting.length >= concurrentSequences + this.#queueLength) {
      throw perigeeError('QUEUE_FULL', { waiting: this.#waiting.length });
    }
    const sequence = new Sequence(request, createSampler(request.sampling, request.prompt), () => this.#kick());
    this.#waiting.push(sequence);
    this.#kick();
    return sequence;
  }

  /** Running sequences that somebody still waits for; a cancelled one leaves after the step under way. */
  #live(): number {
    return this.#running.filter((sequence) => !sequence.cancelled).length;
  }

  #cancel(sequence: Sequence, reason: unknown): void {
    sequence.cancelled = true;
    sequence.events.fail(reason);
    const place = this.#waiting.indexOf(sequence);
    if (place >= 0) this.#waiting.splice(place, 1);
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
        this.#retireCancelled();
        this.#admit();
        const parts = planStep(
          this.#running.filter((sequence) => !sequence.events.full),
          this.#runtime.limits,
        );
        if (parts.length === 0) return;
        await this.#step(parts);
      }
    } catch (cause) {
      this.#fail(cause);
    } finally {
      this.#loop = null;
    }
  }

  #retireCancelled(): void {
    for (const sequence of this.#running.filter((each) => each.cancelled)) this.#retire(sequence);
  }

  #admit(): void {
    while (this.#running.length < concurrentSequences) {
      const sequence = this.#waiting.shift();
      if (sequence === undefined) return;
      const claim = this.#cache.claim(sequence.request.prompt);
      sequence.start(claim.pages, claim.tokens);
      this.#running.push(sequence);
    }
  }

  async #step(parts: readonly StepPart[]): Promise<void> {
    for (const { sequence, count } of parts) this.#reserve(sequence, sequence.computed + count);
    const logits = await this.#runtime.step(stepBatch(parts));
    const { vocabulary } = this.config;
    for (const { sequence, count, output } of parts) {
      sequence.computed += count;
      if (output === null || sequence.cancelled) continue;
      try {
        const row = logits.subarray(output * vocabulary, (output + 1) * vocabulary);
        if (sequence.advance(row, this.contextTokens)) this.#retire(sequence);
      } catch (error) {
        // What a sampler cannot do is that request's affair, not the engine's.
        sequence.events.fail(error);
        this.#retire(sequence);
      }
    }
  }

  /** Makes the pages of the sequence reach `positions`. With one sequence running, what others hold is only the cache. */
  #reserve(sequence: Sequence, positions: number): void {
    const missing = pagesFor(positions) - sequence.pages.length;
    if (missing <= 0) return;
    if (missing > this.#pool.free) this.#cache.evict();
    sequence.pages.push(...this.#pool.take(missing));
  }

  /** Ends the running of a sequence; its pages wait in the cache for a prompt that goes on from them. */
  #retire(sequence: Sequence): void {
    this.#running.splice(this.#running.indexOf(sequence), 1);
    this.#cache.keep(sequence.tokens.slice(0, sequence.computed), sequence.pages);
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
