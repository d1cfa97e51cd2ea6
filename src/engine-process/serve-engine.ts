/** The engine process's end of the channel: answers the front's messages with a scheduler of its own. */
import { createScheduler } from '../scheduler/scheduler.ts';
import type { EngineClient } from '../scheduler/types.ts';
import type { LoadEngine } from './load.ts';
import { type EngineMessage, eventWindow, type FrontMessage, type RequestEvent, toWire } from './protocol.ts';

/** How often the front hears statistics while there is work: each is small, and a person watches no faster. */
const statisticsMilliseconds = 250;

/** One request in this process: how to stop it, and how many events the front has not yet read. */
class Job {
  readonly abort = new AbortController();
  #unread = 0;
  #resume: (() => void) | null = null;

  consumed(count: number): void {
    this.#unread -= count;
    if (this.#unread < eventWindow) this.#resume?.();
  }

  stop(): void {
    this.abort.abort();
    this.#resume?.();
  }

  /** Counts one event as sent; resolves when the next may be. */
  async sent(): Promise<void> {
    this.#unread++;
    if (this.#unread < eventWindow || this.abort.signal.aborted) return;
    await new Promise<void>((resolve) => {
      this.#resume = resolve;
    });
  }
}

/** Events collected during one turn of the event loop and sent as one message: a message costs more than a token. */
class Outbox {
  #events: RequestEvent[] = [];

  push(event: RequestEvent): void {
    if (this.#events.length === 0) setImmediate(() => this.flush());
    this.#events.push(event);
  }

  flush(): void {
    if (this.#events.length === 0) return;
    const events = this.#events;
    this.#events = [];
    send({ type: 'events', events });
  }
}

/**
 * Runs this process as an engine until the front closes it or is gone. `loadEngine` gets the options of the front's `load`
 * message, which the front's caller typed.
 */
export function serveEngine<Options>(loadEngine: LoadEngine<Options>): void {
  if (process.send === undefined) throw new Error('serveEngine runs in a process forked by startRemoteEngine');
  const jobs = new Map<number, Job>();
  const outbox = new Outbox();
  let engine: EngineClient | null = null;

  let reporting = false;
  /** Sends statistics soon, and again for as long as there is work. An idle engine has no timer. */
  const reportSoon = () => {
    if (reporting) return;
    reporting = true;
    setTimeout(() => {
      reporting = false;
      const statistics = engine?.status().statistics;
      if (!statistics) return;
      send({ type: 'statistics', statistics });
      if (jobs.size > 0 || statistics.pages.used > 0) reportSoon();
    }, statisticsMilliseconds);
  };

  const answer = async ({ id, request }: Extract<FrontMessage, { type: 'submit' }>) => {
    const job = new Job();
    jobs.set(id, job);
    reportSoon();
    try {
      if (engine === null) throw new Error('submit before ready');
      for await (const event of engine.generate(request, job.abort.signal)) {
        outbox.push({ id, event });
        await job.sent();
      }
    } catch (error) {
      outbox.flush();
      if (!job.abort.signal.aborted) send({ type: 'request-failed', id, error: toWire(error) });
      if (engine?.status().state === 'failed') endWith(error);
    } finally {
      jobs.delete(id);
    }
  };

  const load = async (message: Extract<FrontMessage, { type: 'load' }>) => {
    const loaded = await loadEngine(message.options as Options, (progress) => send({ type: 'progress', progress }));
    engine = createScheduler(loaded.runtime, {
      ...message.limits,
      selection: loaded.selection,
      constraints: loaded.constraints,
    });
    const { config, contextTokens } = engine;
    const weights = { bytes: loaded.runtime.weightBytes, bytesPerToken: loaded.runtime.activeWeightBytes };
    send({ type: 'ready', config, contextTokens, selection: loaded.selection, weights });
    reportSoon();
  };

  const hear: { [Type in FrontMessage['type']]: (message: Extract<FrontMessage, { type: Type }>) => void } = {
    load: (message) => void load(message).catch(endWith),
    submit: (message) => void answer(message),
    consumed: (message) => jobs.get(message.id)?.consumed(message.count),
    cancel: (message) => jobs.get(message.id)?.stop(),
    close: () => void (engine?.close() ?? Promise.resolve()).finally(() => process.exit(0)),
  };
  process.on('message', (message: FrontMessage) => hear[message.type](message as never));
  // Ctrl-C and service managers signal the whole group; the front drains first and then closes this process.
  process.on('SIGINT', () => {});
  process.on('SIGTERM', () => {});
  // No front, nobody to answer: leave at once, whatever runs.
  process.on('disconnect', () => process.exit(0));
}

function send(message: EngineMessage): void {
  // A closed channel is answered by 'disconnect'; nobody needs the message then.
  process.send?.(message, () => {});
}

/** Tells the front why, then ends: a fresh process is the only sure way to get the memory and the ranks back. */
function endWith(error: unknown): void {
  process.send?.({ type: 'engine-failed', error: toWire(error) } satisfies EngineMessage, () => process.exit(1));
}
