/**
 * Server-sent events on the wire: headers, framing, back-pressure, keep-alive and the end. Knows nothing of what the events
 * say. A client that stops reading is dropped; that it left, in-flight.ts tells.
 */
import type { ServerResponse } from 'node:http';
import type { FastifyReply } from 'fastify';

/** Below the 30 s after which common proxies drop a silent connection. */
const pingMilliseconds = 10_000;

/** A client that takes nothing for this long holds a slot that others wait for; it is dropped. */
const stallMilliseconds = 60_000;

const headers = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-cache',
  // nginx would otherwise collect the events.
  'x-accel-buffering': 'no',
  connection: 'keep-alive',
};

export class SseStream {
  readonly #response: ServerResponse;
  readonly #ping: NodeJS.Timeout;

  /** Takes the reply from Fastify and sends the headers; from here on failures are events. */
  constructor(reply: FastifyReply) {
    reply.hijack();
    this.#response = reply.raw;
    this.#response.writeHead(200, { ...(reply.getHeaders() as Record<string, string>), ...headers });
    this.#response.flushHeaders();
    this.#response.socket?.setNoDelay(true);
    this.#ping = setInterval(() => this.#keepAlive(), pingMilliseconds);
    this.#response.once('close', () => clearInterval(this.#ping));
  }

  /** Sends one event; resolves when the client has room for the next. */
  async send(data: unknown): Promise<void> {
    await this.#write(`data: ${JSON.stringify(data)}\n\n`);
  }

  /** Ends the stream as OpenAI's clients expect it. */
  async done(): Promise<void> {
    await this.#write('data: [DONE]\n\n');
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

  #keepAlive(): void {
    if (!this.#response.writableNeedDrain) this.#response.write(': ping\n\n');
  }
}
