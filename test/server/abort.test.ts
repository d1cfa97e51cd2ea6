/** What happens when somebody leaves, everybody comes at once, or the server must go. */
import { afterEach, describe, expect, test } from 'vitest';
import { shutDown } from '../../src/server/lifecycle.ts';
import { eventually } from '../scheduler/eventually.ts';
import { gate } from '../scheduler/gate.ts';
import { type Harness, modelId, silent, startLocal } from './harness.ts';

let server: Harness;
afterEach(() => server.close());

const goOn = { model: modelId, messages: [{ role: 'user' as const, content: 'Go on' }], temperature: 0 };
const hello = { ...goOn, messages: [{ role: 'user' as const, content: 'Hello' }] };

const idle = () => eventually(() => expect(server.engine.status()).toMatchObject({ running: 0, waiting: 0 }));

describe('a client that leaves', () => {
  test('in the middle of a stream stops the generation', async () => {
    const started = await startLocal();
    server = started;
    const stream = await server.client.chat.completions.create({ ...goOn, stream: true });
    let chunks = 0;
    for await (const _ of stream) if (++chunks === 5) break;
    await idle();
    const steps = started.runtime.batches.length;
    for (let i = 0; i < 50; i++) await new Promise((resolve) => setImmediate(resolve));
    expect(started.runtime.batches.length).toBe(steps);
    expect((await server.client.chat.completions.create(hello)).choices[0]!.message.content).toBe(
      'Hello there, friend!',
    );
  });

  test('without a stream stops the generation', async () => {
    const { arrived, open, beforeStep } = gate();
    server = await startLocal({ beforeStep });
    const abort = new AbortController();
    const answer = server.client.chat.completions.create(goOn, { signal: abort.signal });
    await arrived;
    abort.abort();
    await expect(answer).rejects.toThrow();
    await idle();
    open();
  });

  test('while it waits leaves the queue', async () => {
    const { arrived, open, beforeStep } = gate();
    server = await startLocal({ beforeStep });
    const first = server.client.chat.completions.create(hello);
    await arrived;
    const abort = new AbortController();
    const second = server.client.chat.completions.create({ ...goOn, stream: true }, { signal: abort.signal });
    await eventually(() => expect(server.engine.status().waiting).toBe(1));
    abort.abort();
    await expect(second).rejects.toThrow();
    await eventually(() => expect(server.engine.status().waiting).toBe(0));
    open();
    expect((await first).choices[0]!.finish_reason).toBe('stop');
  });

  test('many times over leaks nothing', async () => {
    server = await startLocal({ queueLength: 200 });
    const leave = async () => {
      const stream = await server.client.chat.completions.create({ ...goOn, stream: true });
      for await (const _ of stream) break;
    };
    for (let i = 0; i < 10; i++) await Promise.all(Array.from({ length: 10 }, leave));
    await idle();
    expect(server.server.inFlight.size).toBe(0);
    expect(server.log()).not.toMatch(/"level":(50|60)/);
  });
});

test('beyond the queue: 429 with Retry-After, while /health stays well and accepted work goes on', async () => {
  const { arrived, open, beforeStep } = gate();
  server = await startLocal({ queueLength: 2, beforeStep });
  const accepted = [server.client.chat.completions.create(hello)];
  await arrived;
  accepted.push(server.client.chat.completions.create(hello), server.client.chat.completions.create(hello));
  await eventually(() => expect(server.engine.status()).toMatchObject({ running: 1, waiting: 2 }));
  for (const stream of [false, true]) {
    const refused = await fetch(`${server.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...hello, stream }),
    });
    expect(refused.status).toBe(429);
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThan(0);
    expect(await refused.json()).toMatchObject({
      error: { type: 'rate_limit_error', code: 'queue_full', param: null },
    });
  }
  const health = await fetch(`${server.url}/health`);
  expect(health.status).toBe(200);
  expect(await health.json()).toMatchObject({ queue: { running: 1, waiting: 2 } });
  open();
  for (const answer of await Promise.all(accepted))
    expect(answer.choices[0]!.message.content).toBe('Hello there, friend!');
});

describe('draining', () => {
  test('finishes what is under way, refuses what is new, then closes', async () => {
    const { arrived, open, beforeStep } = gate();
    server = await startLocal({ beforeStep });
    const answer = server.client.chat.completions.create(hello);
    await arrived;
    const closed = shutDown(server.server, { engine: server.engine, logger: silent, drainMilliseconds: 60_000 });
    expect((await fetch(`${server.url}/readyz`)).status).toBe(503);
    expect((await fetch(`${server.url}/livez`)).status).toBe(200);
    expect(await (await fetch(`${server.url}/health`)).json()).toMatchObject({ status: 'draining' });
    await expect(server.client.chat.completions.create(hello)).rejects.toMatchObject({
      status: 503,
      code: 'engine_closed',
    });
    open();
    expect((await answer).choices[0]!.message.content).toBe('Hello there, friend!');
    await closed;
    await expect(fetch(`${server.url}/livez`)).rejects.toThrow();
    expect(server.engine.status().state).toBe('closed');
  });

  test('at the deadline a stream ends with an error event and [DONE]', async () => {
    server = await startLocal();
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...goOn, stream: true }),
    });
    await eventually(() => expect(server.engine.status().running).toBe(1));
    const closed = shutDown(server.server, { engine: server.engine, logger: silent, drainMilliseconds: 0 });
    const events = (await response.text()).trimEnd().split('\n\n');
    expect(events.at(-1)).toBe('data: [DONE]');
    expect(JSON.parse(events.at(-2)!.slice('data: '.length))).toMatchObject({ error: { code: 'engine_closed' } });
    await closed;
  });
});
