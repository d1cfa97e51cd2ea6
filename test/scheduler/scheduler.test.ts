import { describe, expect, test } from 'vitest';
import { greedy } from './fake-runtime.ts';
import { gate } from './gate.ts';
import { collect, expected, range, request, start } from './requests.ts';

describe('one request', () => {
  test('prefills in chunks of the batch limit, then decodes token by token', async () => {
    const { runtime, engine } = start({ batchTokens: 16 });
    const { tokens, events, ended } = await collect(engine, request(range(0, 37)));
    expect(tokens).toEqual(expected(range(0, 37), 8));
    expect(runtime.batches.map((batch) => batch.tokens.length)).toEqual([16, 16, 5, 1, 1, 1, 1, 1, 1, 1]);
    expect(runtime.batches.map((batch) => batch.outputs.length)).toEqual([0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
    expect(events[0]).toEqual({ type: 'started', promptTokens: 37, cachedTokens: 0 });
    expect(ended).toMatchObject({ reason: 'length', stopToken: null, timing: { promptTokens: 37, decodedTokens: 8 } });
  });

  test('ends at a stop token, which is reported and not sent as a token', async () => {
    const { engine } = start();
    const answer = expected([1, 2, 3], 8);
    const stop = answer[3]!;
    const { tokens, ended } = await collect(engine, request([1, 2, 3], { stopTokens: [stop] }));
    expect(tokens).toEqual(answer.slice(0, answer.indexOf(stop)));
    expect(ended).toMatchObject({ reason: 'stop', stopToken: stop });
  });

  test('crosses page boundaries', async () => {
    const { engine } = start();
    const { tokens } = await collect(engine, request(range(0, 60), { maxTokens: 80 }));
    expect(tokens).toEqual(expected(range(0, 60), 80));
  });

  test('ends with length when the context is full', async () => {
    const { engine } = start({ pages: 2 });
    expect(engine.contextTokens).toBe(128);
    const { tokens, ended } = await collect(engine, request(range(0, 120), { maxTokens: 1000 }));
    expect(tokens).toHaveLength(8);
    expect(ended).toMatchObject({ reason: 'length' });
  });
});

describe('a request that cannot work is refused before a step', () => {
  test.each([
    ['a prompt as long as the context', request(range(0, 128)), /128 tokens; the context holds 128/],
    ['an empty prompt', request([]), /no tokens/],
    ['a token id beyond the vocabulary', request([1, 64]), /id 64 does not exist; this model has ids 0 to 63/],
    ['a negative token id', request([-1]), /id -1/],
    ['a fractional token id', request([1.5]), /id 1.5/],
    ['no tokens to generate', request([1], { maxTokens: 0 }), /is 0/],
    ['endless tokens to generate', request([1], { maxTokens: Number.POSITIVE_INFINITY }), /is Infinity/],
  ])('%s', async (_name, wanted, sentence) => {
    const { runtime, engine } = start({ pages: 2 });
    await expect(collect(engine, wanted)).rejects.toThrow(sentence);
    expect(runtime.batches).toHaveLength(0);
  });
});

test('a request whose sampling forbids every token fails alone', async () => {
  const { engine } = start();
  const nothing = range(0, 60)
    .concat(60, 61, 62, 63)
    .map((token) => [token, Number.NEGATIVE_INFINITY] as const);
  const hopeless = collect(engine, request([1], { sampling: { ...greedy, logitBias: nothing } }));
  await expect(hopeless).rejects.toMatchObject({ code: 'NO_TOKEN_ALLOWED' });
  expect((await collect(engine, request([1]))).tokens).toEqual(expected([1], 8));
});

describe('prefix reuse', () => {
  test('computes only what follows the common prefix, with the same result', async () => {
    const { runtime, engine } = start();
    const first = range(0, 100);
    const one = await collect(engine, request(first));
    // The last generated token was never an input, so its latents do not exist.
    const second = [...first, ...one.tokens, 5, 6, 7];
    const before = runtime.batches.length;
    const two = await collect(engine, request(second));
    expect(two.started).toMatchObject({ promptTokens: 111, cachedTokens: 107 });
    expect(runtime.batches[before]!.tokens.length).toBe(4);
    expect(two.tokens).toEqual(expected(second, 8));
  });

  test('a prompt that parts ways in the middle of a page overwrites the rest', async () => {
    const { engine } = start();
    await collect(engine, request(range(0, 100)));
    const other = [...range(0, 70), 50, 51, 52];
    const { started, tokens } = await collect(engine, request(other));
    expect(started).toMatchObject({ cachedTokens: 70 });
    expect(tokens).toEqual(expected(other, 8));
  });

  test('the same prompt again leaves one token to compute', async () => {
    const { engine } = start();
    await collect(engine, request(range(0, 100)));
    const { started, tokens } = await collect(engine, request(range(0, 100)));
    expect(started).toMatchObject({ cachedTokens: 99 });
    expect(tokens).toEqual(expected(range(0, 100), 8));
  });

  test('kept pages give way when another request needs the room', async () => {
    const { engine } = start({ pages: 4 });
    await collect(engine, request(range(0, 150)));
    const other = range(7, 200);
    const { started, tokens } = await collect(engine, request(other));
    expect(started).toMatchObject({ cachedTokens: 0 });
    expect(tokens).toEqual(expected(other, 8));
    // All pages are there again: a third request can fill the context.
    const full = await collect(engine, request(range(3, 240), { maxTokens: 1000 }));
    expect(full.tokens).toHaveLength(256 - 237);
  });
});

describe('requests for one place', () => {
  test('generate one after the other, in the order they came', async () => {
    const { engine } = start();
    const order: number[] = [];
    const prompts = [0, 1, 2, 3].map((i) => range(i, i + 20 + i));
    const results = await Promise.all(
      prompts.map(async (prompt, i) => {
        const result = await collect(engine, request(prompt));
        order.push(i);
        return result.tokens;
      }),
    );
    expect(order).toEqual([0, 1, 2, 3]);
    expect(results).toEqual(prompts.map((prompt) => expected(prompt, 8)));
  });

  test('one beyond the queue is refused at once, and those in it are not disturbed', async () => {
    const { arrived, open, beforeStep } = gate();
    const { engine } = start({ queueLength: 2, beforeStep });
    const accepted = [0, 1, 2].map((i) => collect(engine, request([i, i + 1])));
    await arrived;
    expect(engine.status()).toMatchObject({ running: 1, waiting: 2 });
    await expect(collect(engine, request([9]))).rejects.toMatchObject({ code: 'QUEUE_FULL', status: 429 });
    open();
    const results = await Promise.all(accepted);
    expect(results.map((result) => result.tokens)).toEqual([0, 1, 2].map((i) => expected([i, i + 1], 8)));
    expect(engine.status()).toMatchObject({ running: 0, waiting: 0 });
  });
});

describe('cancelling', () => {
  test('leaving the loop stops before the next step', async () => {
    const { runtime, engine } = start();
    let seen = 0;
    for await (const event of engine.generate(request([1, 2], { maxTokens: 400 }))) {
      if (event.type === 'token' && ++seen === 3) break;
    }
    const steps = runtime.batches.length;
    await collect(engine, request([3, 4], { maxTokens: 1 }));
    // The other request's only step; before it at most the step that was under way.
    expect(runtime.batches.length).toBeLessThanOrEqual(steps + 2);
  });

  test('an abort in the middle of a prefill stops it, and the finished chunks serve the next request', async () => {
    const abort = new AbortController();
    const { runtime, engine } = start({
      beforeStep: () => {
        if (runtime.batches.length === 2) abort.abort(new Error('enough'));
      },
    });
    const prompt = range(0, 100);
    const events = engine.generate(request(prompt), abort.signal)[Symbol.asyncIterator]();
    await events.next();
    await expect(events.next()).rejects.toThrow('enough');
    const { started, tokens } = await collect(engine, request(prompt));
    expect(started).toMatchObject({ cachedTokens: 32 });
    expect(tokens).toEqual(expected(prompt, 8));
    expect(engine.status()).toMatchObject({ running: 0, waiting: 0 });
  });

  test('a request that waits leaves the queue without a step', async () => {
    const { arrived, open, beforeStep } = gate();
    const { runtime, engine } = start({ queueLength: 1, beforeStep });
    const first = collect(engine, request([1]));
    await arrived;
    const abort = new AbortController();
    const waiting = engine
      .generate(request([2]), abort.signal)
      [Symbol.asyncIterator]()
      .next();
    abort.abort(new Error('left'));
    await expect(waiting).rejects.toThrow('left');
    expect(engine.status()).toMatchObject({ running: 1, waiting: 0 });
    open();
    await first;
    expect(runtime.batches.every((batch) => !batch.tokens.includes(2) || batch.positions[0] !== 0)).toBe(true);
  });

  test('an aborted signal is refused at once', async () => {
    const { runtime, engine } = start();
    const refused = engine.generate(request([1]), AbortSignal.abort(new Error('gone')));
    await expect(refused[Symbol.asyncIterator]().next()).rejects.toThrow('gone');
    expect(runtime.batches).toHaveLength(0);
  });

  test('a thousand cancelled requests leak no page', async () => {
    const { engine } = start({ pages: 2 });
    for (let i = 0; i < 1000; i++) {
      for await (const event of engine.generate(request([i % 60, 1, 2]))) if (event.type === 'token') break;
    }
    const { tokens } = await collect(engine, request(range(0, 100), { maxTokens: 28 }));
    expect(tokens).toEqual(expected(range(0, 100), 28));
  });
});

test('a consumer that stops reading pauses its generation', async () => {
  const { runtime, engine } = start({ pages: 20 });
  const events = engine.generate(request([1], { maxTokens: 1000 }))[Symbol.asyncIterator]();
  await events.next();
  // Far more turns than steps to fill the bound.
  for (let i = 0; i < 1000; i++) await new Promise((resolve) => setImmediate(resolve));
  const paused = runtime.batches.length;
  expect(paused).toBeLessThan(70);
  let read = 0;
  for (let next = await events.next(); !next.done; next = await events.next()) if (next.value.type === 'token') read++;
  expect(read).toBe(1000);
});

describe('a runtime that fails', () => {
  test('ends every request with ENGINE_FAILED and takes no more', async () => {
    const { engine } = start({
      beforeStep: () => {
        throw new Error('rank 1 trapped');
      },
    });
    const results = await Promise.allSettled([collect(engine, request([1])), collect(engine, request([2]))]);
    for (const result of results) {
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'ENGINE_FAILED' } });
    }
    expect(engine.status()).toMatchObject({ state: 'failed', lastFailure: expect.stringContaining('rank 1 trapped') });
    await expect(collect(engine, request([1]))).rejects.toMatchObject({ code: 'ENGINE_FAILED' });
  });

  test('close waits for the step under way, fails the rest and closes the runtime', async () => {
    const { arrived, open, beforeStep } = gate();
    const { runtime, engine } = start({ beforeStep });
    const running = collect(engine, request([1]));
    await arrived;
    const closed = engine.close();
    await expect(running).rejects.toMatchObject({ code: 'ENGINE_CLOSED' });
    expect(runtime.closed).toBe(false);
    open();
    await closed;
    expect(runtime.closed).toBe(true);
  });
});
