/** Clients that are slow, many or hostile, and what others notice of them: nothing. README.md has the table of all faults. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { WrongKeys } from '../../src/server/auth.ts';
import { eventually } from '../scheduler/eventually.ts';
import { gate } from '../scheduler/gate.ts';
import { openSocket, postText } from './bare-socket.ts';
import { ask, type Harness, modelId, postJson, startLocal } from './harness.ts';

let server: Harness;
afterEach(() => server.close());

const path = '/v1/chat/completions';
const goOn = { model: modelId, messages: [{ role: 'user' as const, content: 'Go on' }], temperature: 0 };
const hello = { ...goOn, messages: [{ role: 'user' as const, content: 'Hello' }] };
const helloAnswers = async () => {
  const answer = await server.client.chat.completions.create(hello);
  expect(answer.choices[0]!.message.content).toBe('Hello there, friend!');
};
const idle = () => eventually(() => expect(server.engine.status()).toMatchObject({ running: 0, waiting: 0 }));

describe('a sender that is too slow gets 408 and is cut off', () => {
  test.each([
    ['in its headers', 'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: '],
    [
      'in its body',
      `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{`,
    ],
  ])('%s', async (_, begun) => {
    server = await startLocal();
    // What a real one is allowed takes too long for a test.
    server.server.app.server.headersTimeout = 1;
    server.server.app.server.requestTimeout = 1;
    expect(await openSocket(server.url, begun).closed).toMatch(/^HTTP\/1\.1 408 [\s\S]*"type":"timeout_error"/);
    expect(server.log()).not.toMatch(/"level":(50|60)/);
  });

  test('and real ones are allowed seconds for headers, and minutes for a body', async () => {
    server = await startLocal();
    const { headersTimeout, requestTimeout } = server.server.app.server;
    expect(headersTimeout).toBe(20_000);
    expect(requestTimeout).toBe(120_000);
  });
});

describe('a reader that is too slow', () => {
  const endless = postText(path, JSON.stringify({ ...goOn, stream: true }));

  test('does not keep others from being served, and leaves nothing behind', async () => {
    server = await startLocal({ sequences: 2 });
    const { socket, heard } = openSocket(server.url, endless);
    await eventually(() => expect(heard()).toContain('" on"'));
    socket.pause();
    for (let i = 0; i < 5; i++) await helloAnswers();
    socket.destroy();
    await idle();
    expect(server.server.inFlight.size).toBe(0);
  });
});

describe('a client that leaves during its prompt', () => {
  test('stops it after the chunk under way', async () => {
    const { arrived, open, beforeStep } = gate();
    const started = await startLocal({ beforeStep });
    server = started;
    const content = 'word '.repeat(2000);
    const { socket } = openSocket(
      server.url,
      postText(path, JSON.stringify({ ...goOn, messages: [{ role: 'user', content }] })),
    );
    await arrived;
    socket.destroy();
    await eventually(() => expect(server.server.inFlight.size).toBe(0));
    open();
    await idle();
    expect(started.runtime.batches).toHaveLength(1);
  });
});

describe('wrong keys', () => {
  const withKey = (key: string) => ask(`${server.url}/v1/models`, { headers: { authorization: `Bearer ${key}` } });

  test('many of them get 429 and Retry-After, the right one is still taken, and none is logged', async () => {
    server = await startLocal({ apiKey: 'open-sesame' });
    const statuses: number[] = [];
    for (let i = 0; i < 50; i++) expect((await ask(`${server.url}/v1/models`)).status).toBe(401);
    for (let i = 0; i < 120; i++) statuses.push((await withKey(`guess-${i}`)).status);
    expect(statuses).toEqual([...Array<number>(100).fill(401), ...Array<number>(20).fill(429)]);
    const { status, headers, body } = await withKey('guess');
    expect(status).toBe(429);
    expect(Number(headers.get('retry-after'))).toBeGreaterThan(30);
    expect(headers.get('connection')).toBe('close');
    expect(body).toMatchObject({ error: { type: 'rate_limit_error', code: 'api_key_wrong_often' } });
    expect((await withKey('open-sesame')).status).toBe(200);
    expect((await ask(`${server.url}/health`)).status).toBe(200);
    expect(server.log()).not.toMatch(/guess|sesame/);
  });

  test('are counted by address, for a minute, and for so many addresses only', async () => {
    server = await startLocal();
    const wrong = new WrongKeys();
    const times = (count: number, address: string, now: number) =>
      Array.from({ length: count }, () => wrong.count(address, now)).at(-1);
    expect(times(100, 'a', 0)).toBe(0);
    expect(wrong.count('a', 1000)).toBe(59);
    expect(wrong.count('b', 1000)).toBe(0);
    expect(wrong.count('a', 60_000)).toBe(0);
    expect(times(101, 'first', 60_000)).toBe(60);
    for (let i = 0; i < 10_000; i++) wrong.count(`address ${i}`, 61_000);
    expect(wrong.count('first', 62_000)).toBe(0);
  });
});

describe('pages of other origins', () => {
  test('are told nothing that would let them in', async () => {
    server = await startLocal();
    const origin = { origin: 'https://elsewhere.example' };
    const preflight = await fetch(server.url + path, {
      method: 'OPTIONS',
      headers: { ...origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'content-type' },
    });
    expect(preflight.status).toBe(405);
    const simple = await fetch(`${server.url}/v1/models`, { headers: origin });
    for (const { headers } of [preflight, simple]) {
      expect([...headers.keys()].filter((name) => name.startsWith('access-control'))).toEqual([]);
    }
    // What a page may send without asking first is no JSON by name.
    const body = JSON.stringify(hello);
    const sneaked = await ask(server.url + path, {
      method: 'POST',
      headers: { ...origin, 'content-type': 'text/plain' },
      body,
    });
    expect(sneaked.status).toBe(415);
  });
});

describe('a deadline', () => {
  test('that passes in the queue is 503, and in a stream it is the last event', async () => {
    const { arrived, open, beforeStep } = gate();
    let step: () => Promise<void> = beforeStep;
    server = await startLocal({ deadlineMilliseconds: 300, beforeStep: () => step() });
    const running = postJson(server.url + path, hello);
    await arrived;
    const waiting = await postJson(server.url + path, { ...hello, stream: true });
    expect(waiting).toMatchObject({ status: 503, body: { error: { code: 'deadline_exceeded' } } });
    expect(waiting.headers.get('retry-after')).not.toBeNull();
    expect((await running).status).toBe(503);
    step = () => sleep(1);
    open();
    const streaming = await fetch(server.url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...goOn, stream: true }),
    });
    const events = (await streaming.text()).trimEnd().split('\n\n');
    expect(events.length).toBeGreaterThan(3);
    expect(events.at(-2)).toMatch(/^data: \{"error":\{.*"code":"deadline_exceeded"/);
    expect(events.at(-1)).toBe('data: [DONE]');
  });
});

test('a text of ten megabytes is counted, not fed to the model: 400', async () => {
  server = await startLocal();
  const messages = [{ role: 'user', content: 'word '.repeat(2e6) }];
  const { status, body } = await postJson(server.url + path, { model: modelId, messages });
  expect(status).toBe(400);
  expect(body.error.code).toBe('context_length_exceeded');
  await helloAnswers();
});

describe('the log', () => {
  test('is JSON lines of bounded length, whatever clients send', async () => {
    server = await startLocal();
    const hostile = '\u001b[31m{"level":60,"msg":"forged"}';
    const body = JSON.stringify({ ...hello, user: hostile, messages: [{ role: 'user', content: hostile }] });
    const headers = `user-agent: ${'x'.repeat(8000)}\r\nx-request-id: {"forged":1}\r\nconnection: close\r\n`;
    expect(await openSocket(server.url, postText(path, body, headers)).closed).toMatch(/^HTTP\/1\.1 200 /);
    await ask(`${server.url}/${encodeURIComponent(hostile)}/${'y'.repeat(5000)}`);
    expect(await openSocket(server.url, `GET / HTTP/1.1\r\nuser-agent: ${'x'.repeat(2 ** 20)}\r\n\r\n`).closed).toMatch(
      /^(HTTP\/1\.1 431 |$)/,
    );
    const lines = server.log().trimEnd().split('\n');
    expect(lines.length).toBeGreaterThan(2);
    for (const line of lines) {
      expect(JSON.parse(line)).toMatchObject({ level: expect.any(Number), time: expect.any(Number) });
      expect(line.length).toBeLessThan(500);
      expect(line).not.toMatch(/forged|\u001b/);
    }
  });
});
