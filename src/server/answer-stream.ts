/**
 * A streamed answer on the wire: headers, back-pressure, keep-alive and the end, in any dialect. Knows nothing of what the
 * events say. A client that stops reading is dropped; that it left, in-flight.ts tells.
 */
import type { ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';
import type { Dialect } from './dialects.ts';

/** Below the 30 s after which common proxies drop a silent connection. */
const pingMilliseconds = 10_000;

/** A client that takes nothing for this long holds a slot that others wait for; it is dropped. */
const stallMilliseconds = 60_000;

const headers = {
  'cache-control': 'no-cache',
  // nginx would otherwise collect the events.
  'x-accel-buffering': 'no',
  connection: 'keep-alive',
};

export class AnswerStream {
  readonly #dialect: Dialect;
  readonly #response: ServerResponse;
  readonly #ping: NodeJS.Timeout | undefined;

  /** Takes the reply from Fastify and sends the headers; from here on failures are events. */
  constructor(reply: FastifyReply, dialect: Dialect) {
    this.#dialect = dialect;
    reply.hijack();
    this.#response = reply.raw;
    this.#response.writeHead(200, {
      ...(reply.getHeaders() as Record<string, string>),
      ...headers,
      'content-type': dialect.contentType,
    });
    this.#response.flushHeaders();
    this.#response.socket?.setNoDelay(true);
    const { keepAlive } = dialect;
    if (keepAlive !== null) this.#ping = setInterval(() => this.#keepAlive(keepAlive), pingMilliseconds);
    this.#response.once('close', () => clearInterval(this.#ping));
  }

  /** Sends one event; resolves when the client has room for the next. */
  async send(event: unknown): Promise<void> {
    await this.#write(this.#dialect.frame(event));
  }

  /** Ends the stream as the dialect's clients expect it. */
  async done(): Promise<void> {
    await this.#write(this.#dialect.end);
    // Its end may wait long for a slow client, and nothing may be written behind it.
    clearInterval(this.#ping);
    this.#response.end();
  }

  async #write(text: string): Promise<void> {
    const response = this.#response;
    if (response.destroyed || response.write(text)) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => response.destroy(), stallMilliseconds);
      const settle = () => {
        clearTimeout(timer);
        response.off('drain', settle).off('close', settle);
        resolve();
      };
      response.on('drain', settle).on('close', settle);
    });
  }

  #keepAlive(text: string): void {
    if (!this.#response.writableNeedDrain) this.#response.write(text);
  }
}
