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

function inputsOf(c: Case): Inputs {
  const random = new Random(c.keyDim + c.lengths.length);
  const positions = Math.ceil(Math.max(...c.lengths) / c.pageTokens) * c.pageTokens;
  return { q: random.floats(c.lengths.length * c.keyDim), keys: random.floats(positions * c.keyDim) };
}

function attend(core: Core, table: string, c: Case, { q, keys }: Inputs): Float32Array {
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
    const inputs = inputsOf(c);
    const got = attend(core, table, c, inputs);
    const want = expected(c, inputs);
    for (const [i, v] of got.entries()) expect(Math.abs(v - (want[i] as number))).toBeLessThan(5e-6);
    expect(got).toEqual(attend(core, 'scalar', c, inputs));
  });
});
