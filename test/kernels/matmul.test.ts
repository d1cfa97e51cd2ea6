/** The scalar table, which all others equal, against float64. */
import { beforeAll, describe, expect, it } from 'vitest';
import { decode } from './formats.ts';
import { buildCore, Core, FAST_TABLES, Random, randomWeights, TYPE_NAMES, TYPES, type TypeName } from './harness.ts';

const ROWS = 5;
const N = 3;

beforeAll(buildCore);

/** Relative error (of norms) of scalar products against float64 on the same weights and activations. */
function relativeError(type: TypeName, exact: boolean): number {
  const core = new Core('simd128', 16);
  const random = new Random(3);
  const cols = TYPES[type][1] === 1 ? 700 : 5 * TYPES[type][1];
  const w = randomWeights(random, type, ROWS, cols);
  const x = random.floats(N * cols);
  const y = core.alloc(4 * ROWS * N);
  const activations = core.putActivations('scalar', type, exact, x, cols);
  core.matmul('scalar', { type, exact, w: core.put(w), x: activations, xRows: 0, y, rows: ROWS, cols, n: N });
  const got = core.floats(y, ROWS * N);
  const weights = decode(type, w);
  let error = 0;
  let norm = 0;
  for (let t = 0; t < N; t++)
    for (let r = 0; r < ROWS; r++) {
      let sum = 0;
      let square = 0;
      for (let c = 0; c < cols; c++) {
        const product = (weights[r * cols + c] as number) * (x[t * cols + c] as number);
        sum += product;
        square += product * product;
      }
      error += ((got[t * ROWS + r] as number) - sum) ** 2;
      norm += square; // the size a random sum would have: the true one may cancel
    }
  return Math.sqrt(error / norm);
}

describe('scalar products', () => {
  it.each(TYPE_NAMES)('of %s weights and float activations are right to float rounding', (type) => {
    expect(relativeError(type, true)).toBeLessThan(2e-6);
  });

  it.each(TYPE_NAMES.filter((t) => TYPES[t][1] > 1))(
    'of %s weights and 8-bit activations lose less than a percent',
    (type) => {
      // Normal activations in 8 bits: step amax / 127 of about 2.2 (32) or 2.9 (256) deviations, error step / sqrt 12. The
      // weights of formats with mins have a common part that the errors do not share, so their bound is generous.
      const error = relativeError(type, false);
      expect(error).toBeLessThan(0.01);
      expect(error).toBeGreaterThan(0.001); // not by accident the float path
    },
  );
});

describe('quantized activation rows', () => {
  it.each([
    ['Q8_0', 32],
    ['Q4_K', 256],
  ] as const)('that %s weights take have the nearest codes, their scale and their sums', (type, block) => {
    const core = new Core('simd128', 16);
    const cols = 5 * block;
    const x = new Random(4).floats(cols);
    x.fill(0, block, 2 * block); // a block of zeros
    const row = core.putActivations('scalar', type, false, x, cols);
    const bytes = core.bytes(row, core.activationRowBytes(type, false, cols));
    const q = new Int8Array(bytes.buffer, 0, cols);
    const d = new Float32Array(bytes.buffer, cols, 8);
    for (let b = 0; b < 5; b++) {
      const values = x.subarray(b * block, (b + 1) * block);
      const amax = values.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
      expect(Math.abs(d[b] as number)).toBeCloseTo(amax / 127, 4);
      for (let i = 0; i < block; i++) {
        const back = (d[b] as number) * (q[b * block + i] as number);
        // half a step, and the half rounding of the scale at up to 127 steps
        expect(Math.abs(back - (values[i] as number))).toBeLessThanOrEqual(
          (amax / 127) * (0.5 + 127 * 2 ** -11) + 1e-9,
        );
      }
    }
    expect([...d.subarray(5)]).toEqual([0, 0, 0]);
    const sum = (from: number, count: number) => q.subarray(from, from + count).reduce((s, v) => s + v, 0);
    const at = cols + 32;
    if (block === 32) {
      const sums = new Int32Array(bytes.buffer, at, 8);
      expect([...sums]).toEqual([0, 1, 2, 3, 4].map((b) => sum(32 * b, 32)).concat(0, 0, 0));
    } else {
      expect([...new Int16Array(bytes.buffer, at, 40)]).toEqual(Array.from({ length: 40 }, (_, i) => sum(32 * i, 32)));
      expect([...new Int16Array(bytes.buffer, at + 80, 80)]).toEqual(
        Array.from({ length: 80 }, (_, i) => sum(16 * i, 16)),
      );
    }
  });

  it.each(FAST_TABLES)('have the same bits in build %s, table %s, with zeros, tiny and huge values', (build, table) => {
    const core = new Core(build, 16);
    const random = new Random(5);
    for (const type of ['F32', 'Q8_0', 'Q4_K'] as const)
      for (const scale of [1, 0, 1e-38, 1e-30, 1e30, Number.POSITIVE_INFINITY]) {
        const cols = 3 * 256;
        const x = random.floats(cols).map((v, i) => (i % 7 === 0 ? 0 : v * (scale === 0 ? 0 : scale)));
        x[300] = -(x[301] as number); // a tie in magnitude
        const bytes = [table, 'scalar'].map((name) =>
          core.bytes(core.putActivations(name, type, false, x, cols), core.activationRowBytes(type, false, cols)),
        ) as [Uint8Array, Uint8Array];
        expect(Buffer.compare(...bytes), `${type} x ${scale}`).toBe(0);
      }
  });
});
