/** An engine that neither answers nor dies. Time is the front's own timers, moved by hand: no test waits for minutes. */
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type RemoteEngine, startRemoteEngine } from '../../src/engine-process/remote-engine.ts';
import { stepLimit, Watchdog } from '../../src/engine-process/watchdog.ts';
import { eventually } from '../scheduler/eventually.ts';
import { greedy } from '../scheduler/fake-runtime.ts';
import type { FakeLoadOptions } from './fake-engine-main.ts';

const small = { bytes: 1, bytesPerToken: 1 };
const minute = 60_000;

beforeEach(() => void vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] }));
afterEach(() => void vi.useRealTimers());

describe('the watchdog', () => {
  const hung: string[] = [];
  let waiting = true;
  let watchdog: Watchdog;
  beforeEach(() => {
    hung.length = 0;
    waiting = true;
    watchdog = new Watchdog(
      small,
      () => waiting,
      (what) => hung.push(what),
    );
  });
  afterEach(() => watchdog.stop());

  const pass = (seconds: number, each: (second: number) => void = () => {}) => {
    for (let second = 0; second < seconds; second++) {
      each(second);
      vi.advanceTimersByTime(1000);
    }
  };

  test('lets an engine be that goes from step to step', () => {
    pass(1000, (number) => watchdog.hear({ number, tokens: 1 }));
    expect(hung).toEqual([]);
  });

  test('lets an engine be that waits for a reader, as long as it talks', () => {
    pass(1000, () => watchdog.hear(null));
    expect(hung).toEqual([]);
  });

  test('lets an idle engine be, which says nothing', () => {
    watchdog.hear(null);
    waiting = false;
    pass(1000);
    waiting = true;
    pass(59);
    expect(hung).toEqual([]);
  });

  test('ends an engine whose step does not end, once, though nobody waits any more', () => {
    waiting = false;
    pass(200, () => watchdog.hear({ number: 7, tokens: 5 }));
    expect(hung).toEqual(['a step of 5 tokens did not end within 61 s']);
  });

  test('ends an engine that says nothing while somebody waits', () => {
    pass(61);
    expect(hung).toEqual(['it said nothing for 60 s']);
  });

  test('gives a step the time that its weights and tokens may take on a slow machine', () => {
    expect(stepLimit(small, 1)).toBeCloseTo(minute, 0);
    // Kimi K2 in Q4_K_M: 600 GB, of which a token reads 18.
    const large = { bytes: 600e9, bytesPerToken: 18e9 };
    expect(stepLimit(large, 1)).toBeGreaterThan(3 * minute);
    expect(stepLimit(large, 256)).toBeGreaterThan(stepLimit(large, 64));
  });
});

describe('an engine that hangs', () => {
  const [hang, spin] = [40, 41];
  let engine: RemoteEngine;
  afterEach(() => engine.close());

  const request = (prompt: readonly number[]) => ({
    id: 'r',
    prompt,
    maxTokens: 2,
    sampling: greedy,
    stopTokens: [],
  });
  const tokens = async (prompt: readonly number[]) => {
    const out: number[] = [];
    for await (const event of engine.generate(request(prompt))) if (event.type === 'token') out.push(event.token);
    return out;
  };

  test.each([
    ['in a step', hang, 'did not end within'],
    ['so that it hears nothing', spin, 'said nothing for'],
  ])('%s is killed, its requests are told, and the next is served', async (_, token, why) => {
    const entry = fileURLToPath(new URL('fake-engine-main.ts', import.meta.url));
    const loadOptions: FakeLoadOptions = {
      vocabulary: 64,
      replies: [{ when: [], after: 1, say: [10, 11] }],
      hang,
      spin,
    };
    engine = await startRemoteEngine({ entry, loadOptions });
    const answer = expect(tokens([token, 1])).rejects.toMatchObject({
      code: 'ENGINE_FAILED',
      message: expect.stringContaining(why),
    });
    // The one that still talks has said which step is under way.
    if (token === hang) await eventually(() => expect(engine.status().statistics?.step?.tokens).toBe(2));
    vi.advanceTimersByTime(2 * minute);
    await answer;
    await eventually(() => expect(engine.status()).toMatchObject({ state: 'ready', restarts: 1 }));
    expect(engine.status().lastFailure).toContain(why);
    expect(await tokens([2, 1])).toEqual([10, 11]);
  });
});
