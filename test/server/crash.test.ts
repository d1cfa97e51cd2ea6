/** The engine process dies under a serving front. */
import { APIConnectionError, APIError } from 'openai';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { eventually } from '../scheduler/eventually.ts';
import { ask, modelId, postJson, startRemote, tokenizer } from './harness.ts';

let server: Awaited<ReturnType<typeof startRemote>>;
beforeAll(async () => {
  server = await startRemote({ hang: tokenizer.encode('xylophone')[0]! });
});
afterAll(() => server.close());

const goOn = { model: modelId, messages: [{ role: 'user' as const, content: 'Go on' }], temperature: 0 };
const hello = { ...goOn, messages: [{ role: 'user' as const, content: 'Hello' }] };
const health = () => ask(`${server.url}/health`);

test.each(['SIGKILL', 'SIGSEGV'] as const)('%s in the middle of a stream', async (signal) => {
  const before = (await health()).body.engine.restarts;
  const stream = await server.client.chat.completions.create({ ...goOn, stream: true });
  const waiting = server.client.chat.completions.create(hello);
  const refused = expect(waiting).rejects.toMatchObject({ status: 500, code: 'engine_failed' });
  await eventually(() => expect(server.engine.status()).toMatchObject({ running: 1, waiting: 1 }));

  let text = '';
  const error: unknown = await (async () => {
    for await (const chunk of stream) {
      if (text === '') process.kill(server.remote.pid!, signal);
      text += chunk.choices[0]?.delta.content ?? '';
    }
  })().catch((caught) => caught);
  // An error that was told, not a connection that was cut.
  expect(error).toBeInstanceOf(APIError);
  expect(error).not.toBeInstanceOf(APIConnectionError);
  expect((error as APIError).message).toContain(signal);
  await refused;

  expect(await health()).toMatchObject({ status: 503, body: { status: 'loading' } });
  const early = await postJson(`${server.url}/v1/chat/completions`, hello);
  expect(early.status).toBe(503);
  expect(early.headers.get('retry-after')).not.toBeNull();

  await eventually(async () => expect((await health()).status).toBe(200));
  const { body } = await health();
  expect(body.engine).toMatchObject({
    state: 'ready',
    restarts: before + 1,
    failures_in_a_row: 1,
    restarts_in_milliseconds: null,
    last_failure: expect.stringContaining(signal),
  });
  const answer = await server.client.chat.completions.create(hello);
  expect(answer.choices[0]!.message.content).toBe('Hello there, friend!');
});

test('a client that leaves is heard in the other process', async () => {
  const stream = await server.client.chat.completions.create({ ...goOn, stream: true });
  for await (const _ of stream) break;
  // Only one request generates at a time: this one does when the other is gone.
  const answer = await server.client.chat.completions.create(hello);
  expect(answer.choices[0]!.message.content).toBe('Hello there, friend!');
});

test('an engine that hangs is killed: the request is told, /health says so, and the next is served', async () => {
  const { restarts } = (await health()).body.engine;
  // The watchdog counts the ticks of an interval; minutes of them pass at once.
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
  // Its timer must be a fake one: it is started with the engine.
  process.kill(server.remote.pid!, 'SIGKILL');
  await eventually(() => expect(server.engine.status()).toMatchObject({ state: 'ready', restarts: restarts + 1 }));
  const messages = [{ role: 'user' as const, content: 'xylophone' }];
  const answer = postJson(`${server.url}/v1/chat/completions`, { model: modelId, messages });
  await eventually(() => expect(server.engine.status().statistics?.step).toBeTruthy());
  expect((await health()).body).toMatchObject({ status: 'ready', queue: { running: 1 } });
  vi.advanceTimersByTime(120_000);
  vi.useRealTimers();
  expect(await answer).toMatchObject({ status: 500, body: { error: { code: 'engine_failed' } } });
  const { status, body } = await health();
  expect(status).toBe(503);
  expect(body.engine.last_failure).toMatch(/^a step of \d+ tokens did not end within \d+ s$/);
  await eventually(async () => expect((await health()).status).toBe(200));
  expect((await server.client.chat.completions.create(hello)).choices[0]!.message.content).toBe('Hello there, friend!');
});

test('engines killed again and again under streams: every stream is told, every request in between is right', async () => {
  const { restarts } = (await health()).body.engine;
  // `make soak` kills two hundred.
  for (let round = 1; round <= 5; round++) {
    const streams = Array.from({ length: 4 }, async () => {
      for await (const _ of await server.client.chat.completions.create({ ...goOn, stream: true }));
    });
    const told = streams.map((stream) => expect(stream).rejects.toBeInstanceOf(APIError));
    await eventually(() => expect(server.engine.status()).toMatchObject({ running: 1, waiting: 3 }));
    process.kill(server.remote.pid!, 'SIGKILL');
    await Promise.all(told);
    await eventually(async () => expect((await health()).body.engine.restarts).toBe(restarts + round));
    await eventually(async () => expect((await health()).status).toBe(200));
    expect((await server.client.chat.completions.create(hello)).choices[0]!.message.content).toBe(
      'Hello there, friend!',
    );
  }
  expect(server.server.inFlight.size).toBe(0);
});
