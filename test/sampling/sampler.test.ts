import { describe, expect, it } from 'vitest';
import { Candidates, largest } from '../../src/sampling/candidates.ts';
import { neutralSampling } from '../../src/sampling/defaults.ts';
import { createSampler } from '../../src/sampling/sampler.ts';
import type { SamplingOptions } from '../../src/sampling/types.ts';

const logsOf = (probabilities: readonly number[]) => Float32Array.from(probabilities, Math.log);

/** The ids that may be drawn. */
function allowed(logits: Float32Array, options: Partial<SamplingOptions>): readonly number[] {
  const candidates = new Candidates(logits.length);
  candidates.fill(logits, logits[largest(logits)]!, { ...neutralSampling, ...options });
  return candidates.ids;
}

function draws(
  logits: Float32Array,
  options: Partial<SamplingOptions>,
  count: number,
  prompt: number[] = [],
): number[] {
  const sampler = createSampler({ ...neutralSampling, ...options }, prompt);
  return Array.from({ length: count }, () => sampler.next(logits));
}

describe('greedy', () => {
  const greedy = { temperature: 0 };

  it('takes the largest logit, the lowest id among equals', () => {
    expect(draws(Float32Array.of(1, 3, 2, 3), greedy, 1)).toEqual([1]);
    expect(draws(Float32Array.of(-5, -5, -5), greedy, 1)).toEqual([0]);
  });

  it('passes over NaN and -Infinity', () => {
    expect(draws(Float32Array.of(Number.NaN, -Infinity, -7, Number.NaN), greedy, 1)).toEqual([2]);
  });

  it('says so when nothing can be chosen, at any temperature', () => {
    for (const temperature of [0, 1]) {
      for (const logits of [
        Float32Array.of(-Infinity, -Infinity),
        Float32Array.of(Number.NaN, Number.NaN),
        new Float32Array(0),
      ]) {
        expect(() => draws(logits, { temperature }, 1)).toThrow(expect.objectContaining({ code: 'NO_TOKEN_ALLOWED' }));
      }
    }
  });
});

describe('the logits given', () => {
  it('are left as they are', () => {
    const logits = Float32Array.of(3, 1, 2, 0);
    const options = {
      logitBias: [[0, -1]] as const,
      repetitionPenalty: 2,
      presencePenalty: 1,
      topP: 0.9,
      topK: 3,
      minP: 0.01,
    };
    draws(logits, options, 5, [1]);
    expect(logits).toEqual(Float32Array.of(3, 1, 2, 0));
  });

  it('may be infinite', () => {
    expect(draws(Float32Array.of(0, Infinity, 5), {}, 3)).toEqual([1, 1, 1]);
    expect(allowed(Float32Array.of(0, -Infinity, 5), {})).toEqual([0, 2]);
    expect(allowed(Float32Array.of(0, Number.NaN, 5), {})).toEqual([0, 2]);
    expect(allowed(Float32Array.of(0, Number.NaN, 5), { topK: 2 })).toEqual([0, 2]);
  });
});

describe('top-k', () => {
  const logits = Float32Array.of(1, 5, 3, 5, 2, 3);

  it('keeps exactly k tokens, the lowest ids among equals', () => {
    expect(allowed(logits, { topK: 1 })).toEqual([1]);
    expect(allowed(logits, { topK: 2 })).toEqual([1, 3]);
    expect(allowed(logits, { topK: 3 })).toEqual([1, 2, 3]);
    expect(allowed(logits, { topK: 4 })).toEqual([1, 2, 3, 5]);
    expect(allowed(logits, { topK: 5 })).toEqual([1, 2, 3, 4, 5]);
  });

  it('is off at 0 and beyond the vocabulary', () => {
    for (const topK of [0, 6, 100]) expect(allowed(logits, { topK })).toEqual([0, 1, 2, 3, 4, 5]);
  });

  it('agrees with sorting, on many logits', () => {
    const many = Float32Array.from({ length: 3000 }, (_, id) => ((id * 7919) % 1009) / 100);
    const byLogit = Array.from(many.keys()).sort((a, b) => many[b]! - many[a]! || a - b);
    for (const topK of [1, 7, 64, 1000, 2999]) {
      expect(allowed(many, { topK })).toEqual(byLogit.slice(0, topK).sort((a, b) => a - b));
    }
  });
});

describe('min-p', () => {
  it('keeps what has at least that share of the likeliest', () => {
    const logits = logsOf([0.4, 0.1, 0.3, 0.05, 0.15]);
    expect(allowed(logits, { minP: 0 })).toEqual([0, 1, 2, 3, 4]);
    expect(allowed(logits, { minP: 0.2 })).toEqual([0, 1, 2, 4]);
    expect(allowed(logits, { minP: 0.3 })).toEqual([0, 2, 4]);
    expect(allowed(logits, { minP: 0.7 })).toEqual([0, 2]);
    expect(allowed(logits, { minP: 1 })).toEqual([0]);
  });

  it('looks at probabilities after the temperature', () => {
    const logits = logsOf([0.8, 0.2]);
    expect(allowed(logits, { minP: 0.4 })).toEqual([0]);
    expect(allowed(logits, { minP: 0.4, temperature: 2 })).toEqual([0, 1]);
  });
});

describe('top-p', () => {
  it('keeps the fewest tokens that have at least that mass', () => {
    const logits = logsOf([0.1, 0.4, 0.05, 0.3, 0.15]);
    expect(allowed(logits, { topP: 0 })).toEqual([1]);
    expect(allowed(logits, { topP: 0.39 })).toEqual([1]);
    expect(allowed(logits, { topP: 0.41 })).toEqual([1, 3]);
    expect(allowed(logits, { topP: 0.69 })).toEqual([1, 3]);
    expect(allowed(logits, { topP: 0.71 })).toEqual([1, 3, 4]);
    expect(allowed(logits, { topP: 0.94 })).toEqual([0, 1, 3, 4]);
    expect(allowed(logits, { topP: 0.96 })).toEqual([0, 1, 2, 3, 4]);
    expect(allowed(logits, { topP: 1 })).toEqual([0, 1, 2, 3, 4]);
  });

  it('takes the lowest ids among equals', () => {
    expect(allowed(new Float32Array(10), { topP: 0.35 })).toEqual([0, 1, 2, 3]);
    expect(allowed(Float32Array.of(0, 0, 1, 0), { topP: 0.6 })).toEqual([0, 2]);
  });

  it('is of what top-k and min-p left', () => {
    const logits = logsOf([0.4, 0.3, 0.2, 0.1]);
    expect(allowed(logits, { topK: 2, topP: 0.55 })).toEqual([0]); // 4/7 of the two
    expect(allowed(logits, { minP: 0.4, topP: 0.75 })).toEqual([0, 1]); // 7/9 of the three
  });

  it('agrees with sorting, on many logits', () => {
    const many = Float32Array.from({ length: 5000 }, (_, id) => Math.sqrt((id * 7919) % 4999) / 6);
    const weights = Array.from(many, (logit, id) => ({ id, weight: Math.exp(logit) })).sort(
      (a, b) => b.weight - a.weight || a.id - b.id,
    );
    const total = weights.reduce((sum, { weight }) => sum + weight, 0);
    for (const topP of [0.05, 0.5, 0.9, 0.999]) {
      let mass = 0;
      const cut = weights.findIndex(({ weight }) => {
        mass += weight;
        return mass >= topP * total;
      });
      expect(allowed(many, { topP })).toEqual(
        weights
          .slice(0, cut + 1)
          .map(({ id }) => id)
          .sort((a, b) => a - b),
      );
    }
  });
});

describe('penalties', () => {
  /** The token a greedy sampler takes shows which logit is the largest after the adjustments. */
  const greedy = (logits: Float32Array, options: Partial<SamplingOptions>, count: number, prompt: number[] = []) =>
    draws(logits, { ...options, temperature: 0 }, count, prompt);

  it('of repetition divide positive logits and multiply negative ones, once for each token there was', () => {
    expect(greedy(Float32Array.of(4, 2.1, 1.9), { repetitionPenalty: 2 }, 1, [0, 0, 0])).toEqual([1]);
    expect(greedy(Float32Array.of(4, 1.9, 1.8), { repetitionPenalty: 2 }, 1, [0, 0, 0])).toEqual([0]);
    expect(greedy(Float32Array.of(-1, -1.9, -3), { repetitionPenalty: 2 }, 1, [0])).toEqual([1]);
    expect(greedy(Float32Array.of(-1, -2.1, -3), { repetitionPenalty: 2 }, 1, [0])).toEqual([0]);
    // Generated tokens count as well: 4, then 3 against 2, then 2.5 against 2 and 1.5.
    expect(greedy(Float32Array.of(4, 3, 2.5), { repetitionPenalty: 2 }, 4)).toEqual([0, 1, 2, 0]);
  });

  it('of presence are subtracted once a token was generated; the prompt does not count', () => {
    expect(greedy(Float32Array.of(3, 2.5, 1), { presencePenalty: 1 }, 4, [1, 1])).toEqual([0, 1, 0, 0]);
    expect(greedy(Float32Array.of(3, 2.5, 1), { presencePenalty: -1 }, 2)).toEqual([0, 0]);
  });

  it('of frequency are subtracted as often as a token was generated', () => {
    expect(greedy(Float32Array.of(3, 2.5, 1.2), { frequencyPenalty: 1 }, 6)).toEqual([0, 1, 0, 1, 2, 0]);
  });

  it('follow the bias', () => {
    // 1 + 3 = 4, halved to 2, which loses to 2.5; the other order would give 3.5.
    expect(greedy(Float32Array.of(1, 2.5), { logitBias: [[0, 3]], repetitionPenalty: 2 }, 1, [0])).toEqual([1]);
  });
});

describe('logit bias', () => {
  it('forbids at -Infinity, whatever else is asked', () => {
    const logits = Float32Array.of(5, 0, 0);
    const options = { logitBias: [[0, -Infinity]] as const, repetitionPenalty: 0.5, frequencyPenalty: -2 };
    expect(draws(logits, options, 200, [0])).not.toContain(0);
    expect(draws(logits, { ...options, temperature: 0 }, 20, [0])).not.toContain(0);
  });

  it('adds up for an id named twice and ignores ids beyond the vocabulary', () => {
    const logitBias = [
      [1, 3],
      [1, 3],
      [99, 100],
    ] as const;
    expect(draws(Float32Array.of(5, 0), { temperature: 0, logitBias }, 1)).toEqual([1]);
  });
});

describe('the seed', () => {
  const logits = Float32Array.from({ length: 200 }, (_, id) => Math.sin(id));

  it('fixes every draw', () => {
    expect(draws(logits, { seed: 42 }, 50)).toEqual(draws(logits, { seed: 42 }, 50));
  });

  it('gives other draws for another, large and negative ones too', () => {
    const seeds = [0, 1, 2, -1, 2 ** 32, 2 ** 52];
    const sequences = seeds.map((seed) => draws(logits, { seed }, 20).join());
    expect(new Set(sequences).size).toBe(seeds.length);
  });

  it('is not disturbed by other samplers at work', () => {
    const alone = draws(logits, { seed: 7, topP: 0.9 }, 20);
    const sampler = createSampler({ ...neutralSampling, seed: 7, topP: 0.9 }, []);
    const other = createSampler({ ...neutralSampling, seed: 9, topK: 5, presencePenalty: 1 }, []);
    const mixed = alone.map(() => {
      other.next(new Float32Array(50));
      return sampler.next(logits);
    });
    expect(mixed).toEqual(alone);
  });
});

describe('ends that are put off', () => {
  const options = { ...neutralSampling, temperature: 0, postponed: { tokens: [2], count: 2 } };
  const logits = Float32Array.of(1, 0, 5);

  it('are none of the first tokens', () => {
    const sampler = createSampler(options, []);
    expect([1, 2, 3].map(() => sampler.next(logits))).toEqual([0, 0, 2]);
  });

  it('come earlier where nothing else is allowed', () => {
    expect(createSampler(options, []).next(logits, Int32Array.of(0b100))).toBe(2);
    expect(createSampler(options, []).next(logits, Int32Array.of(0b110))).toBe(1);
  });

  it('stay forbidden where a bias forbids them', () => {
    const sampler = createSampler({ ...options, logitBias: [[2, -Infinity]] }, []);
    expect(() => sampler.next(logits, Int32Array.of(0b100))).toThrow('No token can be chosen');
  });
});
