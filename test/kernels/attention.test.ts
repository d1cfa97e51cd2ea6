/** Latent attention over pages: against float64, and every table equal to scalar. */
import { beforeAll, describe, expect, it } from 'vitest';
import { buildCore, Core, FAST_TABLES, Random } from './harness.ts';

interface Case {
  readonly keyDim: number;
  readonly valueDim: number;
  readonly lengths: readonly number[];
  readonly pageTokens: number;
}

const CASES: readonly Case[] = [
  { keyDim: 576, valueDim: 512, lengths: [1], pageTokens: 64 },
  { keyDim: 576, valueDim: 512, lengths: [64, 64, 64, 65, 65, 65, 66, 66], pageTokens: 64 },
  { keyDim: 576, valueDim: 512, lengths: Array.from({ length: 16 }, () => 200), pageTokens: 64 },
  { keyDim: 80, valueDim: 64, lengths: [3, 130, 7, 1, 64, 129, 128], pageTokens: 64 },
  { keyDim: 42, valueDim: 30, lengths: [5, 9, 33, 34, 70], pageTokens: 16 },
];

beforeAll(buildCore);

interface Inputs {
  readonly q: Float32Array;
  readonly keys: Float32Array;
}

/** Of 12 bits each unless `exact`. */
function inputsOf(core: Core, c: Case, exact: boolean): Inputs {
  const random = new Random(c.keyDim + c.lengths.length);
  const positions = Math.ceil(Math.max(...c.lengths) / c.pageTokens) * c.pageTokens;
  const floats = (count: number) => {
    const all = random.floats(count);
    return exact ? all : twelveBits(core, 'scalar', all);
  };
  return { q: floats(c.lengths.length * c.keyDim), keys: floats(positions * c.keyDim) };
}

function twelveBits(core: Core, table: string, values: Float32Array): Float32Array {
  const top = core.mark();
  const at = core.put(values);
  core.run('twelve_bits', table, at, values.length);
  core.release(top);
  return core.floats(at, values.length);
}

function attend(core: Core, table: string, c: Case, { q, keys }: Inputs, exact: boolean): Float32Array {
  const top = core.mark();
  const rows = c.lengths.length;
  const pageFloats = c.pageTokens * c.keyDim;
  const longest = Math.max(...c.lengths);
  const pages: number[] = [];
  for (let at = 0; at < keys.length; at += pageFloats) {
    const page = keys.slice(at, at + pageFloats);
    // What lies beyond the longest row must not be read into a result.
    page.fill(Number.NaN, Math.max(0, longest * c.keyDim - at));
    pages.push(core.put(page));
  }
  const out = core.alloc(4 * rows * c.valueDim);
  core.attention(table, {
    q: core.put(q),
    pages: core.put(Int32Array.from(pages)),
    lengths: core.put(Int32Array.from(c.lengths)),
    out,
    scores: core.alloc(4 * rows * (longest + 3)),
    scoreStride: longest + 3,
    scale: 0.07,
    rows,
    keyDim: c.keyDim,
    valueDim: c.valueDim,
    pageTokens: c.pageTokens,
    exact,
  });
  core.release(top);
  return core.floats(out, rows * c.valueDim);
}

function expected(c: Case, { q, keys }: Inputs): Float64Array {
  const out = new Float64Array(c.lengths.length * c.valueDim);
  for (const [r, length] of c.lengths.entries()) {
    const scores = Array.from({ length }, (_, j) => {
      let dot = 0;
      for (let i = 0; i < c.keyDim; i++) dot += (q[r * c.keyDim + i] as number) * (keys[j * c.keyDim + i] as number);
      return dot * 0.07;
    });
    const max = Math.max(...scores);
    const sum = scores.reduce((s, v) => s + Math.exp(v - max), 0);
    for (const [j, score] of scores.entries())
      for (let i = 0; i < c.valueDim; i++)
        out[r * c.valueDim + i] =
          (out[r * c.valueDim + i] as number) + (Math.exp(score - max) / sum) * (keys[j * c.keyDim + i] as number);
  }
  return out;
}

describe.each(FAST_TABLES)('build %s, table %s', (build, table) => {
  it.each(CASES)('attends over $lengths.length rows of $keyDim as float64 and scalar do', (c) => {
    const core = new Core(build, 16);
    for (const exact of [true, false]) {
      const inputs = inputsOf(core, c, exact);
      const got = attend(core, table, c, inputs, exact);
      const want = expected(c, inputs);
      // Probabilities of 12 bits are off by 2^-13, keys reach 5.
      const most = exact ? 5e-6 : 5 * 2 ** -13;
      for (const [i, v] of got.entries()) expect(Math.abs(v - (want[i] as number))).toBeLessThan(most);
      expect(got).toEqual(attend(core, 'scalar', c, inputs, exact));
    }
  });

  it('leaves 12 bits of a float, whose products with one another are floats', () => {
    const core = new Core(build, 16);
    const random = new Random(12);
    const values = Float32Array.from({ length: 999 }, () => random.normal() * 2 ** ((random.next() % 120) - 60));
    values.set([0, -0, 1, -1, 1e30, -1e30, 2 ** -140, Number.POSITIVE_INFINITY, Number.NaN]);
    const got = twelveBits(core, table, values);
    expect(got).toEqual(twelveBits(core, 'scalar', values));
    for (const [i, value] of values.entries()) {
      const short = got[i] as number;
      if (Number.isNaN(value)) expect(short).toBeNaN();
      else if (Math.abs(value) > 2 ** 60) expect(short).toBe(Math.sign(value) * 2 ** 60);
      else expect(Math.abs(short - value)).toBeLessThanOrEqual(Math.abs(value) * 2 ** -12 + 2 ** -64);
      const other = got[(7 * i) % got.length] as number;
      expect(Math.fround(short * other)).toEqual(short * other);
    }
  });
});
