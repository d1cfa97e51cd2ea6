/** Nano through WebAssembly: what a request gets does not depend on who else is there, to the last bit of its logits. */
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadRuntime } from '../../src/runtime/load.ts';
import { pageTokens, type Runtime, type StepBatch } from '../../src/runtime/runtime.ts';
import type { SamplingOptions } from '../../src/sampling/types.ts';
import { createScheduler } from '../../src/scheduler/scheduler.ts';
import type { EngineClient, GenerationRequest } from '../../src/scheduler/types.ts';
import { openTestModel, someTokens } from '../runtime/models.ts';
import { eventually } from './eventually.ts';
import { greedy } from './fake-runtime.ts';
import { selection } from './requests.ts';

const nano = fileURLToPath(new URL('../../models/nano.gguf', import.meta.url));
const pages = 16;

/** The bits of every row of logits that was computed, by the text before it. */
const bits = new Map<string, Set<string>>();
/** Sequences in each step. */
const widths: number[] = [];
let engine: EngineClient;

beforeAll(async () => {
  const runtime = await loadRuntime({
    ...(await openTestModel(nano)),
    backend: 'wasm',
    threads: 1,
    contextTokens: 512,
    cacheTokens: pages * pageTokens,
    batchTokens: 96,
    sequences: 16,
  });
  engine = createScheduler(recorded(runtime), { selection });
});
afterAll(() => engine.close());

/** The same runtime; what it computes goes to `bits`. */
function recorded(runtime: Runtime): Runtime {
  const texts = new Int32Array(pages * pageTokens);
  const step = async (batch: StepBatch) => {
    const place = (token: number, position: number) =>
      batch.pageTables[batch.sequences[token]!]![Math.floor(position / pageTokens)]! * pageTokens +
      (position % pageTokens);
    batch.tokens.forEach((token, i) => {
      texts[place(i, batch.positions[i]!)] = token;
    });
    const logits = await runtime.step(batch);
    widths.push(batch.pageTables.length);
    const { vocabulary } = runtime.config;
    batch.outputs.forEach((token, row) => {
      const text = Array.from({ length: batch.positions[token]! + 1 }, (_, position) => texts[place(token, position)]);
      const hash = createHash('sha256').update(logits.slice(row * vocabulary, (row + 1) * vocabulary));
      const key = text.join();
      bits.set(key, (bits.get(key) ?? new Set()).add(hash.digest('hex')));
    });
    return logits;
  };
  return new Proxy(runtime, {
    get: (target, name) => {
      if (name === 'step') return step;
      const value = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

async function answer(request: GenerationRequest, leaveAfter = Number.POSITIVE_INFINITY): Promise<number[]> {
  const tokens: number[] = [];
  for await (const event of engine.generate(request)) {
    if (event.type !== 'token') continue;
    tokens.push(event.token);
    if (tokens.length > leaveAfter) break;
  }
  return tokens;
}

test('16 overlapping requests get what each gets alone, under cancels and with too few pages', async () => {
  const drawn: SamplingOptions = { ...greedy, temperature: 1, topP: 0.95, repetitionPenalty: 1.1 };
  const common = someTokens(130, 4000, 7);
  const requests = Array.from({ length: 16 }, (_, i): GenerationRequest => {
    const own = someTokens(3 + 5 * i, 4000, 100 + i);
    const prompt = i % 3 === 0 ? [...common, ...own] : own;
    const sampling = { ...(i % 2 === 0 ? greedy : drawn), seed: i };
    return { id: `${i}`, prompt, maxTokens: i < 6 ? 150 : 20, sampling, stopTokens: [] };
  });
  const alone: number[][] = [];
  for (const request of requests) alone.push(await answer(request));
  expect(Math.max(...widths)).toBe(1);
  const leaveAfter = (i: number) => (i % 5 === 4 ? 10 : Number.POSITIVE_INFINITY);
  const together = await Promise.all(requests.map((request, i) => answer(request, leaveAfter(i))));
  expect(together).toEqual(alone.map((tokens, i) => tokens.slice(0, leaveAfter(i) + 1)));
  expect(Math.max(...widths)).toBeGreaterThan(5);
  const { preemptions, prefixes } = engine.status().statistics!;
  expect(preemptions).toBeGreaterThan(0);
  expect(prefixes.cachedTokens).toBeGreaterThan(128);
  expect([...bits.values()].filter((variants) => variants.size > 1)).toEqual([]);
  await eventually(() => expect(engine.status().statistics!.pages.used).toBe(0));
}, 120_000);
