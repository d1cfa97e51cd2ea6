import { describe, expect, it } from 'vitest';
import type { GgmlTypeName } from '../../src/gguf/types.ts';
import { coreInstance } from './core.ts';
import { randomFloats } from './support.ts';

const core = coreInstance();
const columns = 1024;
const values = randomFloats(64 * columns);

function relativeError(found: Float32Array, wanted: Float32Array): number {
  let difference = 0;
  let magnitude = 0;
  for (const [i, value] of wanted.entries()) {
    difference += ((found[i] as number) - value) ** 2;
    magnitude += value ** 2;
  }
  return Math.sqrt(difference / magnitude);
}

const roundTrip = (type: GgmlTypeName, input: Float32Array, width = columns) =>
  core.decode(type, core.encode(type, input, width), width);

/** The obvious encoder: the largest magnitude of each `block` elements decides the step, and all are rounded. */
function plainSymmetric(block: number, steps: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let start = 0; start < values.length; start += block) {
    const part = values.subarray(start, start + block);
    const d = part.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / steps;
    part.forEach((value, i) => {
      out[start + i] = Math.round(value / d) * d;
    });
  }
  return out;
}

/** The obvious encoder with an offset: the least and the largest of each `block` elements are the ends of the grid. */
function plainAffine(block: number, steps: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let start = 0; start < values.length; start += block) {
    const part = values.subarray(start, start + block);
    const least = Math.min(...part);
    const d = (Math.max(...part) - least) / steps;
    part.forEach((value, i) => {
      out[start + i] = Math.round((value - least) / d) * d + least;
    });
  }
  return out;
}

describe('encoders', () => {
  // [type, the obvious encoder's error on a grid of as many steps (scales unrounded), most of it that ours may have]
  it.each([
    ['Q8_0', plainSymmetric(32, 127), 1.01],
    ['Q4_0', plainSymmetric(32, 7), 0.9],
    ['Q5_0', plainSymmetric(32, 15), 0.95],
    ['Q5_1', plainAffine(32, 31), 0.98],
    ['Q4_K', plainAffine(32, 15), 0.98],
    ['Q5_K', plainAffine(32, 31), 1.0],
    ['Q6_K', plainSymmetric(16, 31), 1.0],
  ] as const)('beat rounding to the obvious grid: %s', (type, plain, share) => {
    const ours = relativeError(roundTrip(type, values), values);
    expect(ours).toBeLessThan(share * relativeError(plain, values));
    expect(ours).toBeGreaterThan(0);
  });

  it.each([
    ['F16', 2 ** -11],
    ['BF16', 2 ** -8],
  ] as const)('round floats to the nearest: %s', (type, bound) => {
    const back = roundTrip(type, values);
    for (const [i, value] of values.entries()) {
      if (Math.abs((back[i] as number) - value) > Math.max(Math.abs(value) * bound, 2 ** -25))
        expect.fail(`${value} became ${back[i]}`);
    }
  });

  const all = ['Q8_0', 'Q4_0', 'Q5_0', 'Q5_1', 'Q4_K', 'Q5_K', 'Q6_K'] as const;

  it.each(all)('give the same bytes again, in either build, wherever the row stands: %s', (type) => {
    const whole = core.encode(type, values, columns);
    expect(core.encode(type, values, columns)).toEqual(whole);
    expect(coreInstance('relaxed').encode(type, values, columns)).toEqual(whole);
    const row = core.encode(type, values.subarray(5 * columns, 6 * columns), columns);
    expect(row).toEqual(whole.subarray(5 * row.length, 6 * row.length));
  });

  it.each(all)('keep zeros zero: %s', (type) => {
    expect(roundTrip(type, new Float32Array(columns)).every((value) => value === 0)).toBe(true);
  });

  it.each(all)('survive rows of one value, lone spikes and tiny numbers: %s', (type) => {
    const spike = new Float32Array(256);
    spike[0] = -3;
    const rows = [
      new Float32Array(256).fill(0.7),
      new Float32Array(256).fill(-0.7),
      spike,
      randomFloats(256).map((v) => v * 1e-6),
    ];
    for (const [index, row] of rows.entries()) {
      const back = roundTrip(type, row, 256);
      expect(back.every(Number.isFinite)).toBe(true);
      // Steps finer than a half's last place do not exist, so tiny numbers may become zero, not large.
      expect(relativeError(back, row), `row ${index}`).toBeLessThan(index === 3 ? 1.01 : 0.08);
    }
  });

  it('reproduce numbers that already lie on their grid', () => {
    const grid = Float32Array.from({ length: 256 }, (_, i) => (((i * 7) % 16) - 8) * 0.25);
    expect(roundTrip('Q4_0', grid, 256)).toEqual(grid);
  });
});
