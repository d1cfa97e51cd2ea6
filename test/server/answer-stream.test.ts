import { get, type IncomingMessage } from 'node:http';
import Fastify from 'fastify';
import { expect, test, vi } from 'vitest';
import { AnswerStream } from '../../src/server/answer-stream.ts';
import { anthropic, type Dialect, ollama, openAi } from '../../src/server/dialects.ts';
import { eventually } from '../scheduler/eventually.ts';

const event = { text: 'x'.repeat(2 ** 20) };
const events = 64;

test('a client that reads nothing holds the sender back; when it reads, all arrives', async () => {
  let sent = 0;
  let blocked = () => false;
  const app = Fastify();
  app.get('/', async (_request, reply) => {
    const stream = new AnswerStream(reply, openAi);
    blocked = () => reply.raw.writableNeedDrain;
    for (; sent < events; sent++) await stream.send(event);
    await stream.done();
    return reply;
  });
  const url = await app.listen({ port: 0 });
  // A response without a 'data' listener is not read.
  const response = await new Promise<IncomingMessage>((resolve) => get(url, resolve));
  await eventually(() => expect(blocked()).toBe(true));
  for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setImmediate(resolve));
  expect(sent).toBeLessThan(events);

  let length = 0;
  for await (const bytes of response) length += (bytes as Buffer).length;
  expect(sent).toBe(events);
  expect(length).toBe(events * `data: ${JSON.stringify(event)}\n\n`.length + 'data: [DONE]\n\n'.length);
  await app.close();
});

test('a client that leaves does not hold the sender back', async () => {
  let ended = false;
  const app = Fastify();
  app.get('/', async (_request, reply) => {
    const stream = new AnswerStream(reply, openAi);
    for (let i = 0; i < events; i++) await stream.send(event);
    await stream.done();
    ended = true;
    return reply;
  });
  const url = await app.listen({ port: 0 });
  const response = await new Promise<IncomingMessage>((resolve) => get(url, resolve));
  response.destroy();
  await eventually(() => expect(ended).toBe(true));
  await app.close();
});

test('a client that takes nothing for a minute is dropped', async () => {
  let dropped = false;
  let blocked = () => false;
  const app = Fastify();
  app.get('/', async (_request, reply) => {
    const stream = new AnswerStream(reply, openAi);
    blocked = () => reply.raw.writableNeedDrain;
    reply.raw.once('close', () => {
      dropped = true;
    });
    for (let i = 0; i < events; i++) await stream.send(event);
    await stream.done();
    return reply;
  });
  const url = await app.listen({ port: 0 });
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  // A response without a 'data' listener is not read.
  const response = await new Promise<IncomingMessage>((resolve) => get(url, resolve));
  response.on('error', () => {});
  while (!blocked()) await new Promise((resolve) => setImmediate(resolve));
  vi.advanceTimersByTime(59_000);
  expect(dropped).toBe(false);
  vi.advanceTimersByTime(1000);
  vi.useRealTimers();
  await eventually(() => expect(dropped).toBe(true));
  await app.close();
});

test.each<[string, Dialect, string]>([
  ['OpenAI', openAi, ': ping\n\n'],
  ['Anthropic', anthropic, 'event: ping\ndata: {"type":"ping"}\n\n'],
  ['Ollama', ollama, ''],
])(
  'a silent stream of %s says that it lives, as its clients understand it, until it has ended',
  async (_name, dialect, ping) => {
    let started = () => {};
    const silent = new Promise<void>((resolve) => {
      started = resolve;
    });
    let finish = () => {};
    const failures: unknown[] = [];
    const app = Fastify();
    app.get('/', async (_request, reply) => {
      const stream = new AnswerStream(reply, dialect);
      reply.raw.on('error', (error) => failures.push(error));
      const finished = new Promise<void>((resolve) => {
        finish = resolve;
      });
      started();
      await finished;
      await stream.done();
      // The client may not have taken the end yet.
      vi.advanceTimersByTime(10_000);
      return reply;
    });
    const url = await app.listen({ port: 0 });
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
    const answer = fetch(url).then((response) => response.text());
    await silent;
    vi.advanceTimersByTime(20_000);
    finish();
    expect(await answer).toBe(ping + ping + dialect.end);
    vi.useRealTimers();
    await app.close();
    expect(failures).toEqual([]);
  },
);
