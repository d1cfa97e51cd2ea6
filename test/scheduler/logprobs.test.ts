/** Log-probabilities of prompts and answers, over a model whose logits are known for every history. */
import { describe, expect, it } from 'vitest';
import { logSoftmax } from '../../src/sampling/distribution.ts';
import type { TokenLogprobs } from '../../src/sampling/logprobs.ts';
import { tokenLogprobs } from '../../src/sampling/logprobs.ts';
import type { GenerationEvent } from '../../src/scheduler/types.ts';
import { greedy } from './fake-runtime.ts';
import { collect, expected, hash, range, request, start, unlike } from './requests.ts';

const wanted = { top: 2, prompt: true };
const promptLogprobs = (events: readonly GenerationEvent[]): TokenLogprobs[] =>
  events.flatMap((event) => (event.type === 'prompt-logprobs' ? event.tokens : []));
const answerLogprobs = (events: readonly GenerationEvent[]) =>
  events.flatMap((event) => (event.type === 'token' ? event.logprobs! : []));

/** What the fake model's logits, 1 for one token and 0 for the 63 others, say of `token`. */
function reference(history: readonly number[], token: number): number {
  return (token === hash(history) ? 1 : 0) - Math.log(Math.E + 63);
}

function checkPrompt(prompt: readonly number[], found: readonly TokenLogprobs[]): void {
  expect(found.map(({ token }) => token)).toEqual(prompt.slice(1));
  found.forEach(({ token, logprob, top }, i) => {
    const history = prompt.slice(0, i + 1);
    expect(logprob).toBeCloseTo(reference(history, token), 12);
    expect(top[0]![0]).toBe(hash(history));
    expect(top).toHaveLength(2);
  });
}

describe('log-probabilities', () => {
  it('are those of a softmax, with the same bits in the list and alone', () => {
    const logits = Float32Array.of(0.5, 3, -Infinity, 3, 2.25);
    const all = logSoftmax(logits);
    const { logprob, top } = tokenLogprobs(logits, 3, 3);
    expect(top.map(([id]) => id)).toEqual([1, 3, 4]);
    expect(top.find(([id]) => id === 3)![1]).toBe(logprob);
    for (const [id, value] of top) expect(value).toBeCloseTo(all[id]!, 12);
    expect(tokenLogprobs(logits, 2, 0)).toEqual({ token: 2, logprob: -Infinity, top: [] });
    expect(tokenLogprobs(logits, 0, 9).top.map(([id]) => id)).toEqual([1, 3, 4, 0, 2]);
  });

  it.each([1, 2, 5, 40])('of a prompt come once for each token but the first, with %i rows a step', async (outputs) => {
    const { engine, runtime } = start({ outputs, batchTokens: 16 });
    const prompt = range(3, 150);
    const { events, tokens, started } = await collect(engine, request(prompt, { logprobs: wanted, maxTokens: 3 }));
    checkPrompt(prompt, promptLogprobs(events));
    expect(tokens).toEqual(expected(prompt, 3));
    expect(answerLogprobs(events).map(({ token, logprob }) => [token, logprob])).toEqual(
      tokens.map((token) => [token, expect.closeTo(1 - Math.log(Math.E + 63), 12)]),
    );
    expect(started).toMatchObject({ cachedTokens: 0 });
    expect(Math.max(...runtime.batches.map((batch) => batch.outputs.length))).toBeLessThanOrEqual(outputs);
    await engine.close();
  });

  it('of a prompt are there though all of it is cached, and the cache serves others', async () => {
    const { engine } = start({ outputs: 8 });
    const prompt = range(0, 200);
    await collect(engine, request(prompt));
    const scored = await collect(engine, request(prompt, { logprobs: wanted, maxTokens: 1 }));
    checkPrompt(prompt, promptLogprobs(scored.events));
    expect((await collect(engine, request(prompt))).started).toMatchObject({ cachedTokens: 199 });
    await engine.close();
  });

  it('of many prompts at once are right, with too few pages for all of them', async () => {
    const { engine } = start({ outputs: 6, sequences: 4, pages: 6, batchTokens: 32 });
    const prompts = [unlike(1, 130), unlike(2, 90), unlike(1, 130), unlike(3, 190), unlike(1, 70), unlike(4, 8)];
    const results = await Promise.all(
      prompts.map((prompt) => collect(engine, request(prompt, { logprobs: wanted, maxTokens: 40 }))),
    );
    results.forEach(({ events, tokens }, i) => {
      checkPrompt(prompts[i]!, promptLogprobs(events));
      expect(tokens).toEqual(expected(prompts[i]!, 40));
    });
    expect(engine.status().statistics!.pages.used).toBe(0);
    await engine.close();
  });

  it('are told of a stop token too, and of nothing unless asked for', async () => {
    const { engine } = start();
    const prompt = range(0, 9);
    const [stop] = expected(prompt, 1);
    const stopped = await collect(
      engine,
      request(prompt, { stopTokens: [stop!], logprobs: { top: 1, prompt: false } }),
    );
    expect(stopped.ended).toMatchObject({
      stopToken: stop,
      logprobs: { token: stop, top: [[stop, expect.any(Number)]] },
    });
    expect(promptLogprobs(stopped.events)).toEqual([]);
    const plain = await collect(engine, request(prompt));
    expect(plain.events.some((event) => 'logprobs' in event)).toBe(false);
    await engine.close();
  });
});

it('an end of turn is not among the tokens it is postponed behind', async () => {
  const { engine } = start();
  const prompt = range(0, 9);
  const [stop] = expected(prompt, 1);
  const postponed = { tokens: [stop!], count: 5 };
  const { tokens } = await collect(
    engine,
    request(prompt, { stopTokens: [stop!], sampling: { ...greedy, postponed }, maxTokens: 5 }),
  );
  expect(tokens).toHaveLength(5);
  expect(tokens).not.toContain(stop);
  await engine.close();
});
