import { describe, expect, it } from 'vitest';
import { neutralSampling, samplingDefaults } from '../../src/sampling/defaults.ts';
import { klDivergence, logSoftmax } from '../../src/sampling/distribution.ts';
import { SplitMix64 } from '../../src/sampling/random.ts';
import { createSampler } from '../../src/sampling/sampler.ts';
import type { SamplingOptions } from '../../src/sampling/types.ts';

describe('logSoftmax', () => {
  it('gives log probabilities', () => {
    const logs = logSoftmax(Float32Array.of(0, Math.log(3), -Infinity));
    expect(logs[0]).toBeCloseTo(Math.log(0.25), 6);
    expect(logs[1]).toBeCloseTo(Math.log(0.75), 6);
    expect(logs[2]).toBe(-Infinity);
  });

  it('does not overflow', () => {
    expect(Array.from(logSoftmax([1e30, 1e30]))).toEqual([-Math.LN2, -Math.LN2]);
    expect(logSoftmax([1000, 0])[1]).toBe(-1000);
  });
});

describe('klDivergence', () => {
  it('is the sum of p log(p / q)', () => {
    const [p, q] = [
      [0.5, 0.25, 0.25],
      [0.25, 0.25, 0.5],
    ];
    expect(klDivergence(p.map(Math.log), q.map(Math.log))).toBeCloseTo(0.25 * Math.LN2, 12);
    expect(klDivergence([1, 2, 3], [11, 12, 13])).toBeCloseTo(0, 12);
    expect(klDivergence([0, -Infinity], [0, 0])).toBeCloseTo(Math.LN2, 12);
    expect(klDivergence([0, 0], [0, -Infinity])).toBe(Infinity);
  });
});

describe('SplitMix64', () => {
  it('gives the published sequence', () => {
    const random = new SplitMix64(1234567);
    expect(Array.from({ length: 5 }, () => random.next())).toEqual([
      6457827717110365317n,
      3203168211198807973n,
      9817491932198370423n,
      4593380528125082431n,
      16408922859458223821n,
    ]);
  });

  it('is uniform in [0, 1)', () => {
    const random = new SplitMix64(3);
    const counts = new Array<number>(64).fill(0);
    for (let draw = 0; draw < 64_000; draw++) counts[Math.floor(random.uniform() * 64)]!++;
    expect(chiSquare(counts, new Array(64).fill(1 / 64))).toBeLessThan(critical(63));
  });
});

/** Sum over the outcomes of (observed - expected)^2 / expected. */
function chiSquare(counts: readonly number[], probabilities: readonly number[]): number {
  const total = counts.reduce((a, b) => a + b);
  return counts.reduce((sum, count, id) => {
    const expected = probabilities[id]! * total;
    if (expected === 0) return count === 0 ? sum : Infinity;
    return sum + (count - expected) ** 2 / expected;
  }, 0);
}

/** The value that chi-square exceeds once in a thousand (Wilson and Hilferty's approximation). */
function critical(degrees: number): number {
  const width = 2 / (9 * degrees);
  return degrees * (1 - width + 3.09 * Math.sqrt(width)) ** 3;
}

describe('draws', () => {
  const logits = Float32Array.from({ length: 40 }, (_, id) => 3 * Math.sin(id * id));

  /** What should come out, computed without the sampler: softmax of the logits at the temperature, of the ids kept. */
  function expected(temperature: number, keep: (probabilities: readonly number[], id: number) => boolean): number[] {
    const all = Array.from(logSoftmax(logits.map((logit) => logit / temperature)), Math.exp);
    const kept = all.map((probability, id) => (keep(all, id) ? probability : 0));
    const sum = kept.reduce((a, b) => a + b);
    return kept.map((probability) => probability / sum);
  }

  const rank = (probabilities: readonly number[], id: number) =>
    probabilities.filter((other) => other > probabilities[id]!).length;
  const massAbove = (probabilities: readonly number[], id: number) =>
    probabilities.filter((other) => other > probabilities[id]!).reduce((a, b) => a + b, 0);

  const cases: readonly (readonly [string, Partial<SamplingOptions>, number[]])[] = [
    ['neutral', {}, expected(1, () => true)],
    ['cool', { temperature: 0.6 }, expected(0.6, () => true)],
    ['hot', { temperature: 3 }, expected(3, () => true)],
    ['of the top 5', { topK: 5 }, expected(1, (all, id) => rank(all, id) < 5)],
    ['with min-p 0.1', { minP: 0.1 }, expected(1, (all, id) => all[id]! >= 0.1 * Math.max(...all))],
    ['with top-p 0.8', { topP: 0.8 }, expected(1, (all, id) => massAbove(all, id) < 0.8)],
  ];
  it.each(cases)('%s have the right frequencies', (_, options, probabilities) => {
    const sampler = createSampler({ ...neutralSampling, seed: 11, ...options }, []);
    const counts = new Array<number>(logits.length).fill(0);
    for (let draw = 0; draw < 40_000; draw++) counts[sampler.next(logits)]!++;
    const outcomes = probabilities.filter((probability) => probability > 0).length;
    expect(chiSquare(counts, probabilities)).toBeLessThan(critical(outcomes - 1));
  });
});

describe('samplingDefaults', () => {
  it('is neutral where the model says nothing', () => {
    expect(samplingDefaults({ metadata: new Map() })).toEqual(neutralSampling);
  });

  it('takes what the model recommends', () => {
    const metadata = new Map([
      ['general.sampling.temp', 0.6],
      ['general.sampling.top_k', 20],
      ['general.sampling.top_p', 0.95],
    ]);
    expect(samplingDefaults({ metadata })).toEqual({ ...neutralSampling, temperature: 0.6, topK: 20, topP: 0.95 });
  });

  it('refuses a recommendation that cannot be meant', () => {
    for (const [key, value] of [
      ['temp', -1],
      ['top_p', 1.5],
      ['min_p', 'x'],
      ['penalty_repeat', 0],
      ['temp', Number.NaN],
    ] as const) {
      const metadata = new Map([[`general.sampling.${key}`, value]]);
      expect(() => samplingDefaults({ metadata })).toThrow(expect.objectContaining({ code: 'MODEL_BAD_CONFIG' }));
    }
  });
});
