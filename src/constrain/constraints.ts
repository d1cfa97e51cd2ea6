/**
 * Constraints over one vocabulary. The grammars live in a worker, so that neither compiling nor a slow mask holds up the
 * engine; the next mask is made while the engine computes. A worker that does not answer in time is ended: whose question it
 * was working on has failed, all others go on in a new one, which is told their tokens again. If it was at the arguments of a
 * tool that is not strict, the answer goes on as well: they may be any object.
 */
import { Worker } from 'node:worker_threads';
import { PerigeeError, perigeeError } from '../errors.ts';
import { entryFile } from '../runtime/assets.ts';
import type { ToHost, ToWorker } from './messages.ts';
import type { ConstraintRun, ConstraintSpec, Constraints, TokenMask, ToolConstraint, Unenforced } from './types.ts';

/** With Kimi K2's vocabulary schemas take up to a second to compile on idle cores, masks some milliseconds at worst. */
const answerMilliseconds = 3000;
/** What an answer's masks may take each, on average, beside one that takes longest: the worker serves others as well. */
const tokenMilliseconds = 20;
/** The same for the grammars that are compiled before an answer. */
const compileMilliseconds = 1000;
/** Schemas of tools that are remembered as too slow. */
const mostSlow = 64;
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
  /** Schemas, as JSON, that took too long in a call. */
  readonly #slow = new Set<string>();
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
      for (const tool of looseTools(spec))
        if (this.#slow.has(JSON.stringify(tool.parameters))) opened.release(tool.name);
      this.#runs.set(id, opened);
      this.#proceed(id, opened);
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
      this.#watch();
      return;
    }
    const { id } = message;
    const run = this.#runs.get(id);
    if (message.type === 'arguments') {
      if (run !== undefined) run.writing = message.tool;
    } else if (message.type === 'opened') {
      run?.begin(message.unenforced);
    } else if (message.type === 'failed' && message.code === 'CONSTRAINT_FAILED') {
      // What nobody foresaw may have ruined the library's instance for all.
      this.#replace(new PerigeeError(message.code, message.message));
    } else {
      this.#asked.shift();
      if (run !== undefined) this.#settle(id, run, message);
      this.#watch();
    }
  }

  #settle(id: number, run: Run, message: Extract<ToHost, { type: 'compiled' | 'mask' | 'failed' }>): void {
    run.spent += performance.now() - this.#since;
    if (message.type === 'failed') {
      run.fail(new PerigeeError(message.code, message.message, { param: message.param }));
    } else if (run.spent > this.#limit + tokenMilliseconds * run.tokens.length + compileMilliseconds * run.compiled) {
      this.#giveUp(id, run, this.#late(run));
    } else if (message.type === 'mask') {
      run.answer(message.mask);
    } else {
      run.compiled++;
      this.#proceed(id, run);
    }
  }

  /** Gives the worker time for the question it is at. */
  #watch(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#asked.length === 0) return;
    this.#since = performance.now();
    const limit = this.#ready ? this.#limit : startMilliseconds;
    this.#timer = setTimeout(() => this.#replace(this.#late(this.#runs.get(this.#asked[0]!))), limit);
  }

  get #limit(): number {
    return this.#options.answerMilliseconds ?? answerMilliseconds;
  }

  #late(run: Run | undefined): PerigeeError {
    const why = `${this.#limit / 1000} seconds were not enough for its grammar`;
    return perigeeError('SCHEMA_TOO_COSTLY', { why }, { param: run?.param });
  }

  /** Ends the worker; the request it was working on fails, and the others go on with a new one. */
  #replace(failure: PerigeeError): void {
    const [culprit] = this.#asked;
    const startFailed = !this.#ready;
    this.#stop();
    for (const [id, run] of this.#runs) {
      if (run.failure !== null) continue;
      if (startFailed) run.fail(failure);
      else if (id === culprit) this.#giveUp(id, run, failure);
      else this.#restart(id, run);
    }
  }

  /** What a run asked for cannot be had: it fails, unless it is at a call whose arguments may do without their schema. */
  #giveUp(id: number, run: Run, failure: PerigeeError): void {
    const tool = looseTools(run.spec).find(({ name }) => name === run.writing);
    if (tool === undefined) {
      run.fail(failure);
      return;
    }
    this.#slow.add(JSON.stringify(tool.parameters));
    const [oldest] = this.#slow;
    if (this.#slow.size > mostSlow) this.#slow.delete(oldest!);
    run.release(tool.name);
    this.#restart(id, run);
  }

  #restart(id: number, run: Run): void {
    run.spent = 0;
    run.compiled = 0;
    this.#proceed(id, run);
  }

  /** Asks what a run needs next: its strict tools one by one, so that others have their turn between, then its masks. */
  #proceed(id: number, run: Run): void {
    const { toCompile } = run;
    if (toCompile === undefined) {
      run.unanswered = 1;
      this.#ask({ type: 'open', id, spec: run.spec, tokens: run.tokens });
    } else {
      this.#ask({ type: 'compile', id, tool: toCompile });
    }
  }

  #stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#asked = [];
    void this.#worker?.terminate();
    this.#worker = null;
  }
}

/** Tools whose schema may be given up. */
function looseTools({ calls }: ConstraintSpec): readonly ToolConstraint[] {
  return (calls?.tools ?? []).filter(({ strict, parameters }) => !strict && parameters !== undefined);
}

interface RunParts {
  readonly accept: (token: number) => void;
  readonly close: () => void;
  readonly changed: () => void;
}

class Run implements ConstraintRun {
  spec: ConstraintSpec;
  readonly tokens: number[] = [];
  unenforced: readonly Unenforced[] = [];
  mask: TokenMask | undefined = undefined;
  failure: PerigeeError | null = null;
  /** Questions to the worker; only the answer to the last tells the mask. */
  unanswered = 0;
  /** Milliseconds the worker was at its questions. */
  spent = 0;
  /** How many strict tools have their grammars. */
  compiled = 0;
  /** The last tool that is not strict and whose arguments began. */
  writing: string | null = null;
  #begun = false;
  /** Tools whose arguments may be any object. */
  readonly #released: string[] = [];
  readonly #parts: RunParts;

  constructor(spec: ConstraintSpec, parts: RunParts) {
    this.spec = spec;
    this.#parts = parts;
  }

  /** The next strict tool whose grammar must be there before the answer begins. */
  get toCompile(): ToolConstraint | undefined {
    return this.#begun ? undefined : this.spec.calls?.tools.filter(({ strict }) => strict)[this.compiled];
  }

  /** The request's field whose grammar is being made. */
  get param(): string | undefined {
    return (this.toCompile ?? this.spec.answer)?.param;
  }

  begin(unenforced: readonly Unenforced[]): void {
    this.#begun = true;
    this.unenforced = [...this.#released.map((tool) => ({ tool, keywords: null })), ...unenforced];
  }

  /** From here on the arguments of `tool` may be any object. */
  release(tool: string): void {
    this.#released.push(tool);
    const calls = this.spec.calls!;
    const tools = calls.tools.map((each) => (each.name === tool ? { name: tool, strict: false } : each));
    this.spec = { ...this.spec, calls: { ...calls, tools } };
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
