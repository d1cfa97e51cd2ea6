/**
 * Constraints over one vocabulary. The grammars live in a worker, so that neither compiling nor a slow mask holds up the
 * engine; the next mask is made while the engine computes. A worker that does not answer in time is ended: whose question it
 * was working on has failed, all others go on in a new one, which is told their tokens again.
 */
import { Worker } from 'node:worker_threads';
import { PerigeeError, perigeeError } from '../errors.ts';
import { entryFile } from '../runtime/assets.ts';
import type { ToHost, ToWorker } from './messages.ts';
import type { ConstraintRun, ConstraintSpec, Constraints, TokenMask } from './types.ts';

/** With Kimi K2's vocabulary schemas take up to a second to compile on idle cores, masks some milliseconds at worst. */
const answerMilliseconds = 3000;
/** What an answer's masks may take each, on average, beside one that takes longest: the worker serves others as well. */
const tokenMilliseconds = 20;
/** The worker reads the vocabulary first. */
const startMilliseconds = 30_000;
/** The worker's JavaScript heap; Kimi K2's vocabulary takes 60 MB of it. */
const heapMegabytes = 512;

export interface ConstraintOptions {
  /** Where openTokenizer finds the vocabulary. */
  readonly tokenizer: string;
  /** Most time for one mask, compiling included; default 3 s. */
  readonly answerMilliseconds?: number;
}

/** The worker is started by the first constraint: it takes time and 100 MB, and many servers never need it. */
export function createConstraints(options: ConstraintOptions): Constraints {
  return new GrammarHost(options);
}

class GrammarHost implements Constraints {
  readonly #options: ConstraintOptions;
  readonly #runs = new Map<number, Run>();
  /** Questions the worker has not answered, oldest first. */
  #asked: number[] = [];
  #worker: Worker | null = null;
  #ready = false;
  #timer: NodeJS.Timeout | null = null;
  /** When the worker came to the question it is at. */
  #since = 0;
  #next = 0;
  #closed = false;

  constructor(options: ConstraintOptions) {
    this.#options = options;
  }

  async open(spec: ConstraintSpec, changed: () => void): Promise<ConstraintRun> {
    if (this.#closed) throw perigeeError('ENGINE_CLOSED', {});
    const id = this.#next++;
    const run = await new Promise<Run>((resolve) => {
      const opened: Run = new Run(spec, {
        accept: (token) => this.#ask({ type: 'accept', id, token }),
        close: () => this.#forget(id),
        changed: () => {
          resolve(opened);
          changed();
        },
      });
      this.#runs.set(id, opened);
      this.#reopen(id, opened);
    });
    if (run.failure === null) return run;
    run.close();
    throw run.failure;
  }

  async close(): Promise<void> {
    this.#closed = true;
    const worker = this.#worker;
    this.#stop();
    for (const run of this.#runs.values()) run.fail(perigeeError('ENGINE_CLOSED', {}));
    await worker?.terminate();
  }

  #ask(message: ToWorker): void {
    if (this.#worker === null) this.#start();
    this.#worker?.postMessage(message);
    if (message.type === 'close') return;
    this.#asked.push(message.id);
    if (this.#asked.length === 1) this.#watch();
  }

  #forget(id: number): void {
    if (!this.#runs.delete(id) || this.#worker === null) return;
    this.#ask({ type: 'close', id });
  }

  #start(): void {
    // Its output is none: the library prints its doubts about grammars.
    const worker = new Worker(entryFile('src/constrain/grammar-worker'), {
      workerData: { tokenizer: this.#options.tokenizer },
      stdout: true,
      stderr: true,
      resourceLimits: { maxOldGenerationSizeMb: heapMegabytes },
    });
    worker.unref();
    this.#worker = worker;
    this.#ready = false;
    let cause = 'its worker ended';
    worker.on('message', (message: ToHost) => this.#worker === worker && this.#hear(message));
    worker.on('error', (error) => {
      cause = String(error);
    });
    worker.on(
      'exit',
      () => this.#worker === worker && this.#replace(perigeeError('CONSTRAINT_FAILED', { what: cause })),
    );
  }

  #hear(message: ToHost): void {
    if (message.type === 'ready') {
      this.#ready = true;
    } else {
      this.#asked.shift();
      const run = this.#runs.get(message.id);
      if (run !== undefined) run.spent += performance.now() - this.#since;
      if (run !== undefined && run.spent > this.#limit + tokenMilliseconds * run.tokens.length) run.fail(this.#late());
      else if (message.type === 'mask') run?.answer(message.mask);
      else run?.fail(new PerigeeError(message.code, message.message));
    }
    this.#watch();
  }

  /** Gives the worker time for the question it is at. */
  #watch(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#asked.length === 0) return;
    this.#since = performance.now();
    const limit = this.#ready ? this.#limit : startMilliseconds;
    this.#timer = setTimeout(() => this.#replace(this.#late()), limit);
  }

  get #limit(): number {
    return this.#options.answerMilliseconds ?? answerMilliseconds;
  }

  #late(): PerigeeError {
    return perigeeError('SCHEMA_TOO_COSTLY', { why: `${this.#limit / 1000} seconds were not enough for its grammar` });
  }

  /** Ends the worker; the request it was working on fails, and the others go on with a new one. */
  #replace(failure: PerigeeError): void {
    const [culprit] = this.#asked;
    const startFailed = !this.#ready;
    this.#stop();
    for (const [id, run] of this.#runs) {
      if (run.failure !== null) continue;
      if (id === culprit || startFailed) run.fail(failure);
      else this.#reopen(id, run);
    }
  }

  /** Begins a run at the worker, or goes on with it at a new one. */
  #reopen(id: number, run: Run): void {
    run.unanswered = 1;
    this.#ask({ type: 'open', id, spec: run.spec, tokens: run.tokens });
  }

  #stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#asked = [];
    void this.#worker?.terminate();
    this.#worker = null;
  }
}

interface RunParts {
  readonly accept: (token: number) => void;
  readonly close: () => void;
  readonly changed: () => void;
}

class Run implements ConstraintRun {
  readonly spec: ConstraintSpec;
  readonly tokens: number[] = [];
  mask: TokenMask | undefined = undefined;
  failure: PerigeeError | null = null;
  /** Questions to the worker; only the answer to the last tells the mask. */
  unanswered = 0;
  /** Milliseconds the worker was at its questions. */
  spent = 0;
  readonly #parts: RunParts;

  constructor(spec: ConstraintSpec, parts: RunParts) {
    this.spec = spec;
    this.#parts = parts;
  }

  accept(token: number): void {
    this.tokens.push(token);
    this.mask = undefined;
    this.unanswered++;
    this.#parts.accept(token);
  }

  answer(mask: TokenMask): void {
    if (--this.unanswered > 0) return;
    this.mask = mask;
    this.#parts.changed();
  }

  fail(failure: PerigeeError): void {
    this.failure = failure;
    this.#parts.changed();
  }

  close(): void {
    this.#parts.close();
  }
}
