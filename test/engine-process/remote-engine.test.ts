import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, expect, test } from 'vitest';
import { RemoteEngine, startRemoteEngine } from '../../src/engine-process/remote-engine.ts';
import type { EngineStatus, GenerationEvent, GenerationRequest } from '../../src/scheduler/types.ts';
import { eventually } from '../scheduler/eventually.ts';
import { greedy } from '../scheduler/fake-runtime.ts';
import type { FakeLoadOptions } from './fake-engine-main.ts';

const entry = fileURLToPath(new URL('fake-engine-main.ts', import.meta.url));
const answer = [10, 11, 12, 13, 14, 15];
const poison = 40;

let engine: RemoteEngine;
afterEach(() => engine.close());

async function start(
  more: Partial<FakeLoadOptions> & { queueLength?: number; onChange?: (status: EngineStatus) => void } = {},
) {
  const { queueLength, onChange, ...rest } = more;
  const loadOptions: FakeLoadOptions = {
    vocabulary: 64,
    replies: [{ when: [], after: 1, say: answer }],
    poison,
    ...rest,
  };
  engine = await startRemoteEngine({ entry, loadOptions, limits: { queueLength }, ...(onChange && { onChange }) });
  return engine;
}

function request(more: Partial<GenerationRequest> = {}): GenerationRequest {
  return { id: 'r', prompt: [2, 1], maxTokens: 6, sampling: greedy, stopTokens: [], ...more };
}

async function tokens(wanted = request()): Promise<number[]> {
  const out: number[] = [];
  for await (const event of engine.generate(wanted)) if (event.type === 'token') out.push(event.token);
  return out;
}

test('generates in another process, tells its shape and its choice', async () => {
  await start();
  expect(engine.pid).not.toBe(process.pid);
  expect(await tokens()).toEqual(answer);
  expect(engine.config.vocabulary).toBe(64);
  expect(engine.contextTokens).toBe(4096);
  await eventually(() =>
    expect(engine.status().statistics).toEqual({
      pages: { used: 0, cached: 1, free: 63 },
      prefixes: { promptTokens: 2, cachedTokens: 0 },
      preemptions: 0,
      step: null,
    }),
  );
  expect(engine.status()).toMatchObject({
    state: 'ready',
    selection: { backend: 'wasm', isa: 'fake', threads: 1, reasons: ['a test asked for it'] },
    running: 0,
    waiting: 0,
    restarts: 0,
    failures: 0,
    restartsIn: null,
    lastFailure: null,
  });
});

test('passes through requests larger than the window of unread events', async () => {
  await start();
  expect(await tokens(request({ maxTokens: 1000 }))).toHaveLength(1000);
});

test('requests with the same id do not meet', async () => {
  await start();
  expect(await Promise.all([tokens(), tokens(), tokens()])).toEqual([answer, answer, answer]);
});

test('refusals of the scheduler keep their code', async () => {
  await start({ queueLength: 0 });
  await expect(tokens(request({ prompt: [99] }))).rejects.toMatchObject({ code: 'TOKEN_OUT_OF_RANGE', status: 400 });
  const events = engine.generate(request({ maxTokens: 4000 }));
  await events.next();
  await expect(tokens()).rejects.toMatchObject({ code: 'QUEUE_FULL' });
  await events.return();
  // The place is free as soon as the engine has heard of it.
  expect(await tokens()).toEqual(answer);
});

test.each(['SIGKILL', 'SIGSEGV'] as const)(
  '%s fails the requests in flight, and the engine comes back',
  async (signal) => {
    const states: string[] = [];
    await start({ onChange: (status) => states.push(status.state) });
    const running = engine.generate(request({ maxTokens: 4000 }));
    await running.next();
    const waiting = tokens();
    process.kill(engine.pid!, signal);
    await expect(drain(running)).rejects.toMatchObject({
      code: 'ENGINE_FAILED',
      message: expect.stringContaining(signal),
    });
    await expect(waiting).rejects.toMatchObject({ code: 'ENGINE_FAILED' });
    await expect(tokens()).rejects.toMatchObject({ code: 'ENGINE_LOADING', status: 503 });
    await eventually(() => expect(engine.status().state).toBe('ready'));
    expect(await tokens()).toEqual(answer);
    expect(engine.status()).toMatchObject({ restarts: 1, lastFailure: expect.stringContaining(signal) });
    expect(states).toEqual(['ready', 'loading', 'ready']);
  },
);

test('a runtime that fails ends its process with the reason, and a fresh one follows', async () => {
  await start();
  await expect(tokens(request({ prompt: [poison, 1] }))).rejects.toThrow('rank 1 trapped');
  await eventually(() => expect(engine.status()).toMatchObject({ state: 'ready', restarts: 1 }));
  expect(engine.status().lastFailure).toContain('rank 1 trapped');
  expect(await tokens()).toEqual(answer);
});

test('an engine that dies again and again is given up, and says so', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'perigee-'));
  const brokenBy = join(folder, 'broken');
  const pauses: (number | null)[] = [];
  // Rounded up: what is left of a pause shrinks from the moment it begins.
  const hundreds = (left: number | null) => left && Math.ceil(left / 100) * 100;
  await start({ brokenBy, onChange: ({ restartsIn }) => pauses.push(hundreds(restartsIn)) });
  writeFileSync(brokenBy, '');
  process.kill(engine.pid!, 'SIGKILL');
  await eventually(() => expect(engine.status().state).toBe('failed'));
  // Each pause is twice the last: an engine that dies at once again does not spin.
  expect(pauses).toEqual([null, 100, 200, 400, 800, null]);
  expect(engine.status()).toMatchObject({ restarts: 4, failures: 5 });
  await expect(tokens()).rejects.toMatchObject({ code: 'ENGINE_GAVE_UP', status: 503 });
  rmSync(folder, { recursive: true });
});

test('a model that cannot be loaded rejects with its own error and is not tried again', async () => {
  const progress: number[] = [];
  engine = new RemoteEngine({
    entry,
    loadOptions: { vocabulary: 64, replies: [], cannotLoad: 'it has 7 legs' },
    onProgress: ({ bytesRead }) => progress.push(bytesRead),
  });
  await expect(engine.ready).rejects.toMatchObject({ code: 'MODEL_UNSUPPORTED', exitCode: 2 });
  expect(engine.status()).toMatchObject({ state: 'failed', restarts: 0 });
  expect(progress).toEqual([50]);
});

test('an aborted request stops in the other process', async () => {
  await start({ queueLength: 0 });
  const abort = new AbortController();
  const events = engine.generate(request({ maxTokens: 4000 }), abort.signal);
  await events.next();
  abort.abort(new Error('left'));
  await expect(drain(events)).rejects.toThrow('left');
  // With no queue, this is only taken when the first is gone; messages keep their order.
  expect(await tokens()).toEqual(answer);
});

test('close ends the process', async () => {
  await start();
  const { pid } = engine;
  await engine.close();
  expect(() => process.kill(pid!, 0)).toThrow('ESRCH');
  await expect(tokens()).rejects.toMatchObject({ code: 'ENGINE_CLOSED' });
});

async function drain(events: AsyncIterable<GenerationEvent>): Promise<void> {
  for await (const _ of events);
}
