/** The generations under way: each stops when its client leaves, and all stop when the server must. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { FastifyReply } from 'fastify';
import { perigeeError } from '../errors.ts';

export class InFlight {
  readonly #generations = new Set<AbortController>();
  #draining = false;
  #idle: (() => void) | null = null;

  /** The server finishes what it has and takes nothing new. */
  get draining(): boolean {
    return this.#draining;
  }

  get size(): number {
    return this.#generations.size;
  }

  /** A signal for one request: aborts when the client leaves before the answer is complete, or at the end of a drain. */
  open(reply: FastifyReply): AbortSignal {
    if (this.#draining) throw perigeeError('ENGINE_CLOSED', {});
    const generation = new AbortController();
    this.#generations.add(generation);
    reply.raw.once('close', () => {
      if (!reply.raw.writableFinished) generation.abort(new ClientLeft());
      this.#generations.delete(generation);
      if (this.#generations.size === 0) this.#idle?.();
    });
    return generation.signal;
  }

  /** Refuses new generations, waits for those under way, and after `deadlineMilliseconds` stops them with an error. */
  async drain(deadlineMilliseconds: number): Promise<void> {
    this.#draining = true;
    if (this.#generations.size === 0) return;
    const idle = new Promise<void>((resolve) => {
      this.#idle = resolve;
    });
    const deadline = new AbortController();
    await Promise.race([idle, sleep(deadlineMilliseconds, undefined, { signal: deadline.signal }).catch(() => {})]);
    deadline.abort();
    if (this.#generations.size === 0) return;
    for (const generation of this.#generations) generation.abort(perigeeError('ENGINE_CLOSED', {}));
    await idle;
  }
}

/** The reason of an abort when there is nobody left to answer. */
export class ClientLeft extends Error {
  constructor() {
    super('The client closed the connection before the answer was complete.');
    this.name = 'ClientLeft';
  }
}
