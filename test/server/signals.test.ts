/** A whole server as a process, and what signals do to it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import OpenAI from 'openai';
import { afterEach, expect, test } from 'vitest';
import { eventually } from '../scheduler/eventually.ts';
import { modelId } from './harness.ts';

const main = fileURLToPath(new URL('serving-main.ts', import.meta.url));
let front: ChildProcess;
afterEach(() => void front.kill('SIGKILL'));

async function start() {
  front = spawn(process.execPath, [main], { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = once(front, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
  const [line] = await once(createInterface(front.stdout!), 'line');
  const { url, engine } = JSON.parse(line as string) as { url: string; engine: number };
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', maxRetries: 0 });
  return { url, engine, client, exited };
}

const isAlive = (pid: number) => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

const goOn = { model: modelId, temperature: 0, messages: [{ role: 'user' as const, content: 'Go on' }] };

test('SIGTERM lets the generation finish, then both processes end', async () => {
  const { url, engine, client, exited } = await start();
  const stream = await client.chat.completions.create({ ...goOn, max_tokens: 500, stream: true });
  let finish: string | null | undefined;
  let chunks = 0;
  for await (const chunk of stream) {
    // A terminal or a service manager signals the whole group.
    if (++chunks === 3) for (const pid of [front.pid!, engine]) process.kill(pid, 'SIGTERM');
    if (chunks === 3) await eventually(async () => expect((await fetch(`${url}/readyz`)).status).toBe(503));
    finish = chunk.choices[0]?.finish_reason ?? finish;
  }
  expect(finish).toBe('length');
  expect(await exited).toEqual([0, null]);
  expect(isAlive(engine)).toBe(false);
});

test('SIGTERM while ten streams run or wait: each is finished, then both processes end', async () => {
  const { url, engine, client, exited } = await start();
  let told = 0;
  const streams = Array.from({ length: 10 }, async () => {
    let finish: string | null | undefined;
    for await (const chunk of await client.chat.completions.create({ ...goOn, max_tokens: 200, stream: true })) {
      if (told++ === 0) process.kill(front.pid!, 'SIGTERM');
      finish = chunk.choices[0]?.finish_reason ?? finish;
    }
    return finish;
  });
  // Those that came before the signal are served; one that the signal overtook is refused, not cut.
  const endings = await Promise.all(streams.map((stream) => stream.catch((error: unknown) => error)));
  expect(endings).toContain('length');
  for (const ending of endings) if (ending !== 'length') expect(ending).toMatchObject({ code: 'engine_closed' });
  expect(await exited).toEqual([0, null]);
  expect(isAlive(engine)).toBe(false);
  await expect(fetch(`${url}/livez`)).rejects.toThrow();
});

test('a second signal ends at once, generation or not', async () => {
  const { url, engine, client, exited } = await start();
  const stream = await client.chat.completions.create({ ...goOn, stream: true });
  const cut = (async () => {
    let chunks = 0;
    for await (const _ of stream) {
      if (++chunks > 1) continue;
      process.kill(front.pid!, 'SIGINT');
      await eventually(async () => expect((await fetch(`${url}/readyz`)).status).toBe(503));
      process.kill(front.pid!, 'SIGINT');
    }
  })();
  await expect(cut).rejects.toThrow();
  expect(await exited).toEqual([1, null]);
  await eventually(() => expect(isAlive(engine)).toBe(false));
});

test('a front that is killed takes its engine with it', async () => {
  const { engine, exited } = await start();
  front.kill('SIGKILL');
  await exited;
  await eventually(() => expect(isAlive(engine)).toBe(false));
});
