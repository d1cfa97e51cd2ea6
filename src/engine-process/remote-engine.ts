/**
 * The engine in a process of its own, as the front sees it. A crash in there ends no server: requests in flight get
 * ENGINE_FAILED, and the process is started again.
 */
import { type PerigeeError, perigeeError } from '../errors.ts';
import type { ModelConfig } from '../model/config.ts';
import type { LoadProgress } from '../runtime/runtime.ts';
import { EventChannel } from '../scheduler/event-channel.ts';
import type {
  EngineClient,
  EngineStatistics,
  EngineStatus,
  GenerationEvent,
  GenerationRequest,
  RequestLimits,
} from '../scheduler/types.ts';
import { EngineChild } from './engine-child.ts';
import { type EngineMessage, eventWindow, fromWire, type RequestEvent, type WireError } from './protocol.ts';
import { Watchdog, type Weights } from './watchdog.ts';

/** Ends in a row, without a finished request or a minute of readiness between, after which the engine stays down. */
const mostFailures = 5;
/** Counted from when the model is loaded: loading may take longer, and dying after it each time is no long life. */
const longLifeMilliseconds = 60_000;
/** Pause before the first new start; each further one doubles it. */
const firstPauseMilliseconds = 100;
/** Read events are acknowledged in groups: a message each would cost more than the tokens. */
const acknowledgeEvery = eventWindow / 4;

export interface RemoteEngineOptions {
  /** Path of the module that the process runs; it calls serveEngine. */
  readonly entry: string;
  /** Plain data for the loadEngine of that module. */
  readonly loadOptions: unknown;
  readonly limits?: RequestLimits;
  readonly onProgress?: (progress: LoadProgress) => void;
  /** For the log: the engine became ready, died, was given up. */
  readonly onChange?: (status: EngineStatus) => void;
}

interface Pending {
  readonly events: EventChannel;
  started: boolean;
}

interface Description {
  readonly config: ModelConfig;
  readonly contextTokens: number;
}

export class RemoteEngine implements EngineClient {
  /** Resolves when the model is loaded for the first time; rejects when it cannot be. */
  readonly ready: Promise<void>;
  readonly #options: RemoteEngineOptions;
  readonly #pending = new Map<number, Pending>();
  #nextId = 0;
  #child: EngineChild;
  #watchdog: Watchdog | null = null;
  #state: EngineStatus['state'] = 'loading';
  #description: Description | null = null;
  #selection: EngineStatus['selection'] = null;
  #statistics: EngineStatistics | null = null;
  #percent = 0;
  #restarts = 0;
  #failures = 0;
  #lastFailure: string | null = null;
  #readySince = Number.POSITIVE_INFINITY;
  #restart: { readonly timer: NodeJS.Timeout; readonly at: number } | null = null;
  #settleReady: { resolve: () => void; reject: (error: PerigeeError) => void } | null = null;

  constructor(options: RemoteEngineOptions) {
    this.#options = options;
    this.ready = new Promise((resolve, reject) => {
      this.#settleReady = { resolve, reject };
    });
    // A server that listens while it loads shows the failure in /health and need not wait here.
    this.ready.catch(() => {});
    this.#child = this.#start();
  }

  get config(): ModelConfig {
    return this.#described().config;
  }

  get contextTokens(): number {
    return this.#described().contextTokens;
  }

  /** The process that runs the engine now. */
  get pid(): number | undefined {
    return this.#child.pid;
  }

  async *generate(request: GenerationRequest, signal?: AbortSignal): AsyncGenerator<GenerationEvent, void, undefined> {
    signal?.throwIfAborted();
    this.#checkState();
    const child = this.#child;
    const id = this.#nextId++;
    const events = new EventChannel(() => {});
    this.#pending.set(id, { events, started: false });
    child.send({ type: 'submit', id, request });
    const leave = () => {
      if (this.#pending.delete(id)) child.send({ type: 'cancel', id });
      events.fail(signal?.reason);
    };
    signal?.addEventListener('abort', leave, { once: true });
    try {
      let read = 0;
      for await (const event of events.read()) {
        yield event;
        if (++read % acknowledgeEvery === 0) child.send({ type: 'consumed', id, count: acknowledgeEvery });
      }
    } finally {
      signal?.removeEventListener('abort', leave);
      leave();
    }
  }

  status(): EngineStatus {
    let running = 0;
    for (const { started } of this.#pending.values()) if (started) running++;
    return {
      state: this.#state,
      selection: this.#selection,
      running,
      waiting: this.#pending.size - running,
      statistics: this.#statistics,
      restarts: this.#restarts,
      failures: this.#failures,
      restartsIn: this.#restart && Math.max(0, Math.ceil(this.#restart.at - performance.now())),
      lastFailure: this.#lastFailure,
    };
  }

  async close(): Promise<void> {
    clearTimeout(this.#restart?.timer);
    this.#restart = null;
    this.#state = 'closed';
    this.#failPending(perigeeError('ENGINE_CLOSED', {}));
    this.#watchdog?.stop();
    await this.#child.close();
  }

  #described(): Description {
    if (this.#description === null) throw perigeeError('ENGINE_LOADING', { percent: this.#percent });
    return this.#description;
  }

  #checkState(): void {
    if (this.#state === 'closed') throw perigeeError('ENGINE_CLOSED', {});
    if (this.#state === 'loading') throw perigeeError('ENGINE_LOADING', { percent: this.#percent });
    if (this.#state === 'failed') {
      throw perigeeError('ENGINE_GAVE_UP', { failures: this.#failures, what: this.#lastFailure ?? '' });
    }
  }

  #start(): EngineChild {
    const { entry, loadOptions, limits = {} } = this.#options;
    this.#readySince = Number.POSITIVE_INFINITY;
    this.#percent = 0;
    const child = new EngineChild(entry, {
      message: (message) => this.#hear(message),
      ended: (what, error) => this.#ended(what, error),
    });
    child.send({ type: 'load', options: loadOptions, limits });
    return child;
  }

  #hear(message: EngineMessage): void {
    switch (message.type) {
      case 'progress': {
        const { bytesRead, bytesTotal } = message.progress;
        this.#percent = bytesTotal === 0 ? 0 : Math.floor((100 * bytesRead) / bytesTotal);
        this.#options.onProgress?.(message.progress);
        break;
      }
      case 'ready':
        if (this.#state === 'closed') break;
        this.#description = { config: message.config, contextTokens: message.contextTokens };
        this.#selection = message.selection;
        this.#readySince = performance.now();
        this.#watch(message.weights);
        this.#become('ready');
        this.#settleReady?.resolve();
        break;
      case 'events':
        for (const each of message.events) this.#deliver(each);
        break;
      case 'statistics':
        this.#statistics = message.statistics;
        this.#watchdog?.hear(message.statistics.step);
        break;
      case 'request-failed': {
        const pending = this.#pending.get(message.id);
        this.#pending.delete(message.id);
        pending?.events.fail(fromWire(message.error));
        break;
      }
    }
  }

  #deliver({ id, event }: RequestEvent): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    pending.started = true;
    pending.events.push(event);
    if (event.type !== 'ended') return;
    this.#pending.delete(id);
    this.#failures = 0;
    pending.events.end();
  }

  /** A loaded engine that hangs is killed; what follows is the same as when it dies. */
  #watch(weights: Weights): void {
    const child = this.#child;
    this.#watchdog = new Watchdog(
      weights,
      () => this.#pending.size > 0,
      (what) => child.kill(what),
    );
  }

  #ended(what: string, error: WireError | null): void {
    this.#watchdog?.stop();
    if (this.#state === 'closed') return;
    this.#lastFailure = error?.message ?? what;
    this.#statistics = null;
    this.#failPending(perigeeError('ENGINE_FAILED', { what }));
    if (performance.now() - this.#readySince > longLifeMilliseconds) this.#failures = 0;
    this.#failures++;
    // A model that never loaded will not load the next time: its error is the answer to the command.
    if (this.#description === null) {
      this.#become('failed');
      this.#settleReady?.reject(error === null ? perigeeError('ENGINE_FAILED', { what }) : fromWire(error));
    } else if (this.#failures >= mostFailures) {
      this.#become('failed');
    } else {
      this.#startAgain(firstPauseMilliseconds * 2 ** (this.#failures - 1));
      this.#become('loading');
    }
  }

  #startAgain(pause: number): void {
    const timer = setTimeout(() => {
      this.#restart = null;
      this.#restarts++;
      this.#child = this.#start();
    }, pause);
    this.#restart = { timer, at: performance.now() + pause };
  }

  #become(state: EngineStatus['state']): void {
    this.#state = state;
    this.#options.onChange?.(this.status());
  }

  #failPending(error: PerigeeError): void {
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { events } of pending) events.fail(error);
  }
}

/** Starts the engine process and resolves when the model is loaded. */
export async function startRemoteEngine(options: RemoteEngineOptions): Promise<RemoteEngine> {
  const engine = new RemoteEngine(options);
  await engine.ready;
  return engine;
}
