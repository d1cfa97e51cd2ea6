import { describe, expect, test } from 'vitest';
import type { StepBatch } from '../../src/runtime/runtime.ts';
import type { EngineClient, GenerationRequest } from '../../src/scheduler/types.ts';
import { eventually } from './eventually.ts';
import { gate } from './gate.ts';
import { collect, expected, range, request, start, unlike } from './requests.ts';

const total = ({ free, used, cached }: { free: number; used: number; cached: number }) => free + used + cached;

/** Every page is free or cached, and none is lost. */
async function expectNoLeak(engine: EngineClient, pages: number) {
  await eventually(() => expect(engine.status().statistics!.pages.used).toBe(0));
  expect(total(engine.status().statistics!.pages)).toBe(pages);
  expect(engine.status()).toMatchObject({ running: 0, waiting: 0 });
}

const tokensOf = (batches: readonly StepBatch[]) => batches.reduce((sum, { tokens }) => sum + tokens.length, 0);

describe('a step', () => {
  test('decodes all running sequences at once', async () => {
    const { runtime, engine } = start({ sequences: 4 });
    const prompts = [1, 2, 3, 4].map((seed) => unlike(seed, 4));
    const results = await Promise.all(prompts.map((prompt) => collect(engine, request(prompt))));
    expect(results.map(({ tokens }) => tokens)).toEqual(prompts.map((prompt) => expected(prompt, 8)));
    // One step of prompts, which gives the first tokens; seven for the others.
    expect(runtime.batches.map(({ tokens }) => tokens.length)).toEqual([16, 4, 4, 4, 4, 4, 4, 4]);
  });

  test('gives every stream its token while a long prompt is computed in chunks beside', async () => {
    const { runtime, engine } = start({ sequences: 2, batchTokens: 16 });
    const stream = engine.generate(request([1, 2], { maxTokens: 40 }))[Symbol.asyncIterator]();
    await stream.next();
    await stream.next();
    const long = collect(engine, request(unlike(5, 150)));
    const rest: number[] = [];
    for (let next = await stream.next(); !next.done; next = await stream.next()) {
      if (next.value.type === 'token') rest.push(next.value.token);
    }
    expect(rest).toEqual(expected([1, 2], 40).slice(1));
    expect((await long).tokens).toEqual(expected(unlike(5, 150), 8));
    const mixed = runtime.batches.filter(({ pageTables }) => pageTables.length === 2);
    expect(mixed.slice(0, 10).map(({ tokens }) => tokens.length)).toEqual(Array(10).fill(16));
    expect(mixed.every(({ outputs }) => outputs.length >= 1)).toBe(true);
  });

  test('lets short prompts start while a long one is computed, and the long one go on', async () => {
    const { runtime, engine } = start({ sequences: 4, batchTokens: 128, pages: 64 });
    const order: string[] = [];
    const ask = (name: string, prompt: readonly number[]) =>
      collect(engine, request(prompt, { maxTokens: 1 })).then(() => order.push(name));
    await Promise.all([ask('long', unlike(1, 1000)), ...[2, 3, 4].map((seed) => ask('short', unlike(seed, 30)))]);
    expect(order).toEqual(['short', 'short', 'short', 'long']);
    expect(runtime.batches.length).toBe(Math.ceil((1000 + 3 * 30) / 128));
  });

  test('computes the oldest prompt at its share, however many shorter ones keep coming', async () => {
    const { runtime, engine } = start({ sequences: 4, batchTokens: 128, pages: 64 });
    const long = collect(engine, request(unlike(1, 640), { maxTokens: 1 }));
    let stepsOfLong = 0;
    const shorts = (async () => {
      for (let seed = 2; stepsOfLong === 0; seed++) {
        await Promise.all(
          [0, 20, 40].map((more) => collect(engine, request(unlike(seed + more, 100), { maxTokens: 1 }))),
        );
      }
    })();
    expect((await long).tokens).toEqual(expected(unlike(1, 640), 1));
    stepsOfLong = runtime.batches.length;
    await shorts;
    expect(stepsOfLong).toBeLessThanOrEqual(640 / 64 + 1);
  });
});

describe('shared prefixes', () => {
  test('of a request that still runs are used by the next', async () => {
    const { engine } = start({ sequences: 2 });
    const first = engine.generate(request(range(0, 130), { maxTokens: 60 }))[Symbol.asyncIterator]();
    await first.next();
    await first.next();
    const other = [...range(0, 128), 9, 9, 9];
    const { started, tokens } = await collect(engine, request(other));
    expect(started).toMatchObject({ cachedTokens: 128 });
    expect(tokens).toEqual(expected(other, 8));
    const rest: number[] = [];
    for (let next = await first.next(); !next.done; next = await first.next()) {
      if (next.value.type === 'token') rest.push(next.value.token);
    }
    expect(rest).toEqual(expected(range(0, 130), 60).slice(1));
    expect(engine.status().statistics!.prefixes).toEqual({ promptTokens: 261, cachedTokens: 128 });
  });

  test('of requests that come together are computed once', async () => {
    const { runtime, engine } = start({ sequences: 8, batchTokens: 64, pages: 64 });
    const prompt = range(0, 200);
    const answers = await Promise.all(Array.from({ length: 8 }, () => collect(engine, request(prompt))));
    for (const { tokens } of answers) expect(tokens).toEqual(expected(prompt, 8));
    // Three full pages once; the rest of the prompt and seven tokens of answer for each.
    expect(tokensOf(runtime.batches)).toBe(192 + 8 * (8 + 7));
    await expectNoLeak(engine, 64);
    expect(engine.status().statistics!.preemptions).toBe(0);
  });

  test('stay while others are used less recently', async () => {
    const { engine } = start({ pages: 4 });
    const [a, b, c] = [1, 2, 3].map((seed) => unlike(seed, 66)) as [number[], number[], number[]];
    const ask = async (prompt: readonly number[]) => (await collect(engine, request(prompt, { maxTokens: 1 }))).started;
    await ask(a);
    await ask(b);
    expect(await ask(a)).toMatchObject({ cachedTokens: 65 });
    await ask(c);
    expect(await ask(a)).toMatchObject({ cachedTokens: 65 });
    expect(await ask(b)).toMatchObject({ cachedTokens: 0 });
    await expectNoLeak(engine, 4);
  });
});

describe('pages that run out', () => {
  test('make the youngest wait and compute again, with the same result', async () => {
    const { engine } = start({ sequences: 4, pages: 8 });
    const prompts = [1, 2, 3, 4].map((seed) => unlike(seed, 40));
    const results = await Promise.all(prompts.map((prompt) => collect(engine, request(prompt, { maxTokens: 200 }))));
    expect(results.map(({ tokens }) => tokens)).toEqual(prompts.map((prompt) => expected(prompt, 200)));
    expect(results.map(({ events }) => events.filter(({ type }) => type === 'started').length)).toEqual([1, 1, 1, 1]);
    expect(engine.status().statistics!.preemptions).toBeGreaterThan(0);
    await expectNoLeak(engine, 8);
  });

  test('are not promised twice: a prompt that does not fit beside the others waits', async () => {
    const { runtime, engine } = start({ sequences: 4, pages: 8 });
    const prompts = [1, 2].map((seed) => unlike(seed, 300));
    const results = await Promise.all(prompts.map((prompt) => collect(engine, request(prompt))));
    expect(results.map(({ tokens }) => tokens)).toEqual(prompts.map((prompt) => expected(prompt, 8)));
    expect(runtime.batches.every(({ pageTables }) => pageTables.length === 1)).toBe(true);
    expect(engine.status().statistics!.preemptions).toBe(0);
  });

  test('are taken from who does not read, and given back when he does', async () => {
    const { engine } = start({ sequences: 2, pages: 4 });
    const lazy = engine.generate(request([1], { maxTokens: 150 }))[Symbol.asyncIterator]();
    await lazy.next();
    // It pauses at 64 unread events. Then the others need its place and its pages.
    await Promise.all([2, 3, 4].map((seed) => collect(engine, request(unlike(seed, 100), { maxTokens: 100 }))));
    const read: number[] = [];
    for (let next = await lazy.next(); !next.done; next = await lazy.next()) {
      if (next.value.type === 'token') read.push(next.value.token);
    }
    expect(read).toEqual(expected([1], 150));
    await expectNoLeak(engine, 4);
  });
});

test('stopped readers do not keep others from starting', async () => {
  const { engine } = start({ sequences: 2, pages: 8 });
  const stopped = [1, 2].map((seed) => engine.generate(request([seed], { maxTokens: 200 }))[Symbol.asyncIterator]());
  await Promise.all(stopped.map((events) => events.next()));
  expect((await collect(engine, request([3]))).tokens).toEqual(expected([3], 8));
  await Promise.all(stopped.map((events) => events.return!()));
  await expectNoLeak(engine, 8);
});

describe('deadlines', () => {
  test('end a request that runs and one that waits', async () => {
    const { open, beforeStep } = gate();
    const { engine } = start({ beforeStep, deadlineMilliseconds: 20 });
    const both = [1, 2].map((token) => collect(engine, request([token])));
    for (const each of both) await expect(each).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED', status: 503 });
    expect(engine.status()).toMatchObject({ running: 0, waiting: 0 });
    open();
    await expectNoLeak(engine, 8);
  });
});

test('hundreds of requests that come, overlap and leave at any time get their own answers, and no page is lost', async () => {
  const pages = 12;
  const { engine } = start({ sequences: 6, batchTokens: 32, pages, queueLength: 1000 });
  let state = 1;
  const below = (bound: number) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return state % bound;
  };
  const prefixes = [0, 1, 2].map((seed) => unlike(seed, 150));
  const wanted: { request: GenerationRequest; leaveAfter: number }[] = Array.from({ length: 300 }, (_, i) => ({
    request: request([...prefixes[below(3)]!.slice(0, below(150)), i % 60, below(60)], { maxTokens: 1 + below(120) }),
    leaveAfter: below(3) === 0 ? below(100) : Number.POSITIVE_INFINITY,
  }));
  const ask = async ({ request: each, leaveAfter }: (typeof wanted)[number]) => {
    const tokens: number[] = [];
    for await (const event of engine.generate(each)) {
      if (event.type !== 'token') continue;
      tokens.push(event.token);
      if (tokens.length > leaveAfter) break;
    }
    return tokens;
  };
  const answers = await Promise.all(wanted.map(ask));
  answers.forEach((tokens, i) => {
    const { request: each, leaveAfter } = wanted[i]!;
    expect(tokens).toEqual(expected(each.prompt, Math.min(each.maxTokens, leaveAfter + 1)));
  });
  expect(engine.status().statistics!.preemptions).toBeGreaterThan(0);
  await expectNoLeak(engine, pages);
});
