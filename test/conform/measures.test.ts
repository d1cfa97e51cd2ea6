import { describe, expect, it } from 'vitest';
import { Differences, type Measures } from '../../src/conform/measures.ts';
import { reroutedTokens } from '../../src/conform/routing.ts';

function measure(reference: readonly number[], candidate: readonly number[], width = reference.length): Measures {
  const differences = new Differences();
  differences.add(Float32Array.from(reference), Float32Array.from(candidate), width, 0);
  return differences.result();
}

describe('the distance of two arrays', () => {
  it('is the one defined, by hand', () => {
    // Errors 0, 1, -2; r.r = 1 + 4 + 16 = 21; c.c = 1 + 9 + 4 = 14.
    expect(measure([1, 2, 4], [1, 3, 2])).toEqual({
      differing: 2,
      differingTokens: 1,
      notFinite: 0,
      maxAbs: 2,
      nmse: 5 / 21,
      cosine: 5 / 35,
      first: { token: 0, channel: 1, reference: 2, candidate: 3 },
      largest: { token: 0, channel: 2, reference: 4, candidate: 2 },
    });
  });

  it('has a cosine difference of 1 - 2 r.c / (r.r + c.c)', () => {
    const [r, c] = [
      [0.5, -2, 3],
      [1, -1, 2.5],
    ];
    const dot = (a: number[], b: number[]) => a.reduce((sum, x, i) => sum + x * b[i]!, 0);
    expect(measure(r!, c!).cosine).toBeCloseTo(1 - (2 * dot(r!, c!)) / (dot(r!, r!) + dot(c!, c!)), 15);
  });

  it('sees a wrong sign of zero and no distance in it', () => {
    expect(measure([0], [-0])).toMatchObject({ differing: 1, maxAbs: 0, nmse: 0, cosine: 0 });
  });

  it('is unbounded where the reference is zero throughout', () => {
    expect(measure([0, 0], [0, 1])).toMatchObject({ maxAbs: 1, nmse: Number.POSITIVE_INFINITY, cosine: 1 });
  });

  it('gathers what comes in pieces and counts tokens on', () => {
    const differences = new Differences();
    differences.add(Float32Array.of(1, 2, 3, 4), Float32Array.of(1, 2, 3, 4), 2, 0);
    differences.add(Float32Array.of(5, 6), Float32Array.of(5, 7), 2, 2);
    expect(differences.result()).toMatchObject({
      differing: 1,
      differingTokens: 1,
      nmse: 1 / 91,
      first: { token: 2, channel: 1, reference: 6, candidate: 7 },
    });
  });
});

describe('NaN and infinity', () => {
  it('are equal on both sides, whatever the bits of the NaN', () => {
    const other = new Float32Array(Uint32Array.of(0xffc00001).buffer);
    const differences = new Differences();
    differences.add(Float32Array.of(Number.NaN), other, 1, 0);
    expect(differences.result()).toMatchObject({ differing: 0, notFinite: 1, nmse: 0, maxAbs: 0 });
    expect(measure([Number.NEGATIVE_INFINITY], [Number.NEGATIVE_INFINITY])).toMatchObject({ differing: 0, nmse: 0 });
  });

  it.each([
    [Number.NaN, 1],
    [1, Number.NaN],
    [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY],
    [1, Number.POSITIVE_INFINITY],
    [Number.NaN, Number.POSITIVE_INFINITY],
  ])('on one side only (%d, %d) are a difference without bounds', (reference, candidate) => {
    const result = measure([2, reference], [2, candidate]);
    const unbounded = Number.POSITIVE_INFINITY;
    expect(result).toMatchObject({ differing: 1, notFinite: 1, maxAbs: unbounded, nmse: unbounded, cosine: unbounded });
    expect(result.first).toMatchObject({ channel: 1, reference, candidate });
  });
});

describe('tokens left out', () => {
  it('count for nothing', () => {
    const differences = new Differences();
    differences.add(Float32Array.of(1, 2, 3, 4), Float32Array.of(1, 2, 9, 9), 2, 10, new Set([11]));
    expect(differences.result()).toMatchObject({ differing: 0, nmse: 0, largest: null });
  });
});

describe('sets of experts', () => {
  const rerouted = (reference: number[], candidate: number[], scores: number[]) =>
    reroutedTokens(Int32Array.from(reference), Int32Array.from(candidate), 2, 5, Float32Array.from(scores));

  it('are equal in any order', () => expect(rerouted([1, 2], [2, 1], [0, 0, 0, 0])).toEqual([]));

  it('that differ have the gap by which the candidate went against its own scores', () => {
    const scores = [0.9, 0.5, 0.25, 0, 0.75, 0.5, 0.25, 0];
    expect(rerouted([0, 1, 0, 1], [1, 0, 2, 0], scores)).toEqual([
      { token: 6, channel: 0, reference: 1, candidate: 2, gap: 0.25 },
    ]);
    expect(rerouted([0, 2], [0, 1], scores.slice(0, 4))).toMatchObject([{ gap: -0.25 }]);
  });

  it('of another group do not compete', () => {
    const [found] = reroutedTokens(Int32Array.of(0, 1), Int32Array.of(2, 3), 2, 0, Float32Array.of(9, 9, 0, 0), 2);
    expect(found?.gap).toBe(Number.NEGATIVE_INFINITY);
  });

  it('with one expert twice are different, whatever the scores', () => {
    const [found] = rerouted([0, 1], [0, 0], [0.9, 0.5, 0.25, 0]);
    expect(found?.gap).toBe(Number.POSITIVE_INFINITY);
  });
});
