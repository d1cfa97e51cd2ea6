/** Weights mean what the GGUF formats say, against an independent float64 reading. */
import { beforeAll, describe, expect, it } from 'vitest';
import { decode } from './formats.ts';
import {
  BUILDS,
  buildCore,
  Core,
  FAST_TABLES,
  Random,
  randomWeights,
  TYPE_NAMES,
  TYPES,
  type TypeName,
} from './harness.ts';

beforeAll(buildCore);

function dequantized(core: Core, table: string, type: TypeName, w: Uint8Array, cols: number): Float32Array {
  const top = core.mark();
  const y = core.alloc(4 * cols);
  core.run('dequantize', table, TYPES[type][0], core.put(w), cols, y);
  core.release(top);
  return core.floats(y, cols);
}

describe.each(BUILDS)('build %s', (build) => {
  it.each(TYPE_NAMES)('reads %s to within a float rounding', (type) => {
    const core = new Core(build, 16);
    const cols = TYPES[type][1] * 40;
    for (const fill of [undefined, 0xff, 0x00, 0x80]) {
      const w = randomWeights(new Random(7), type, 1, cols, fill);
      const want = decode(type, w);
      for (const table of core.tables) {
        const got = dequantized(core, table, type, w, cols);
        // Two roundings at most: the product's and the min's. A min may cancel, so the bound is on the block's scale.
        const bound = 2 ** -23 * want.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
        for (let i = 0; i < cols; i++)
          expect(Math.abs((got[i] as number) - (want[i] as number))).toBeLessThanOrEqual(bound);
      }
    }
  });

  it('reads every half and every bfloat16 exactly', () => {
    const core = new Core(build, 16);
    const all = new Uint8Array(Uint16Array.from({ length: 65536 }, (_, i) => i).buffer);
    for (const type of ['F16', 'BF16'] as const) {
      const want = decode(type, all);
      const got = dequantized(core, 'scalar', type, all, 65536);
      for (let i = 0; i < 65536; i++) if (!Object.is(got[i], want[i])) expect(got[i], `${type} ${i}`).toBe(want[i]);
    }
  });
});

describe('float weights in a product', () => {
  it.each(FAST_TABLES)('are exact in build %s, table %s, for every half and bfloat16', (build, table) => {
    const core = new Core(build, 16);
    for (const type of ['F16', 'BF16'] as const) {
      // A row of one weight times 1 is the weight; n = 1 and n = 5 take different paths.
      const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
      for (const n of [1, 5]) {
        const top = core.mark();
        const y = core.alloc(4 * n * 65536);
        const rows16 = new Uint16Array(65536 * 16);
        for (let i = 0; i < 65536; i++) rows16[16 * i] = all[i] as number;
        const x = core.putActivations(
          'scalar',
          type,
          true,
          Float32Array.from({ length: 16 * n }, (_, i) => Number(i % 16 === 0)),
          16,
        );
        const w = core.put(new Uint8Array(rows16.buffer));
        core.matmul(table, { type, exact: true, w, x, xRows: 0, y, rows: 65536, cols: 16, n });
        const want = decode(type, new Uint8Array(all.buffer));
        const got = core.floats(y, n * 65536);
        core.release(top);
        for (let i = 0; i < n * 65536; i++) {
          const value = want[i % 65536] as number;
          if (got[i] !== value && !(Number.isNaN(got[i]) && Number.isNaN(value))) expect(got[i]).toBe(value);
        }
      }
    }
  });
});
