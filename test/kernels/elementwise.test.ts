/** exp and its kin within their stated errors; norms and softmax against float64; every table equal to scalar. */
import { beforeAll, describe, expect, it } from 'vitest';
import { BUILDS, buildCore, Core, FAST_TABLES, Random } from './harness.ts';

beforeAll(buildCore);

const fround = Math.fround;

describe.each(BUILDS)('elementary functions of build %s', (build) => {
  it('exp of floats is right to one unit in the last place, and ends in 0 and infinity', () => {
    const core = new Core(build, 16);
    const x = Float32Array.from({ length: 200_000 }, (_, i) => -87.3 + (i * (88.7 + 87.3)) / 200_000);
    const at = core.put(x);
    core.run('exp_float', null, at, x.length);
    const y = core.floats(at, x.length);
    let worst = 0;
    for (const [i, v] of x.entries()) worst = Math.max(worst, Math.abs((y[i] as number) / Math.exp(v) - 1));
    expect(worst).toBeLessThan(1.2e-7);
    const ends = core.put(Float32Array.of(0, -103, -105, 89, -1e30, 1e30, Number.POSITIVE_INFINITY, Number.NaN));
    core.run('exp_float', null, ends, 8);
    const inf = Number.POSITIVE_INFINITY;
    expect([...core.floats(ends, 8)]).toEqual([1, fround(Math.exp(-103)), 0, inf, 0, inf, inf, Number.NaN]);
  });

  it('double exp, log, sin and cos are right to 4e-16', () => {
    const core = new Core(build, 16);
    const random = new Random(1);
    for (let i = 0; i < 20_000; i++) {
      const u = random.next() / 2 ** 32;
      const x = (u - 0.5) * 1400;
      expect(Math.abs(core.run('exp', null, x) / Math.exp(x) - 1)).toBeLessThan(4e-16);
      const p = Math.exp(x / 2);
      expect(Math.abs(core.run('log', null, p) - Math.log(p))).toBeLessThan(4e-16 * Math.max(1, Math.abs(Math.log(p))));
      const angle = (u - 0.5) * 1.6e6;
      expect(Math.abs(core.run('sin', null, angle) - Math.sin(angle))).toBeLessThan(4e-16);
      expect(Math.abs(core.run('cos', null, angle) - Math.cos(angle))).toBeLessThan(4e-16);
    }
  });
});

const SIZES = [1, 2, 3, 4, 5, 15, 16, 17, 33, 384, 2048, 2051];

/** Runs `kernel` on copies of the inputs by a table; gives the first input's bytes after. */
function run(
  core: Core,
  table: string,
  kernel: string,
  args: (put: (x: Float32Array) => number) => [number[], number, number],
) {
  const top = core.mark();
  const [rest, out, count] = args((x) => core.put(x));
  core.run(kernel, table, ...rest);
  const result = core.floats(out, count);
  core.release(top);
  return result;
}

describe.each(FAST_TABLES)('build %s, table %s', (build, table) => {
  const inputs = (n: number) => {
    const random = new Random(n);
    return { x: random.floats(n).map((v) => v * 8), y: random.floats(n) };
  };

  it('gives the scalar bits for norms, silu, sigmoid, softmax and axpy at every length', () => {
    const core = new Core(build, 16);
    for (const n of SIZES) {
      const { x, y } = inputs(n);
      const cases: [string, Parameters<typeof run>[3]][] = [
        [
          'rms_norm',
          (put) => {
            const out = put(new Float32Array(n));
            return [[put(x), put(y), 1e-6, n, out], out, n];
          },
        ],
        [
          'silu_mul',
          (put) => {
            const gate = put(x);
            return [[gate, put(y), n], gate, n];
          },
        ],
        [
          'sigmoid',
          (put) => {
            const at = put(x);
            return [[at, n], at, n];
          },
        ],
        [
          'softmax',
          (put) => {
            const at = put(x);
            return [[at, n], at, n];
          },
        ],
        [
          'axpy',
          (put) => {
            const at = put(y);
            return [[1.7, put(x), n, at], at, n];
          },
        ],
      ];
      for (const [kernel, args] of cases)
        expect(run(core, table, kernel, args), `${kernel} of ${n}`).toEqual(run(core, 'scalar', kernel, args));
    }
  });

  it('agrees with float64', () => {
    const core = new Core(build, 16);
    for (const n of SIZES) {
      const { x, y } = inputs(n);
      const mean = x.reduce((s, v) => s + v * v, 0) / n;
      const norm = run(core, table, 'rms_norm', (put) => {
        const out = put(new Float32Array(n));
        return [[put(x), put(y), 1e-6, n, out], out, n];
      });
      expectClose(
        norm,
        x.map((v, i) => (v / Math.sqrt(mean + 1e-6)) * (y[i] as number)),
      );
      const max = Math.max(...x);
      const sum = x.reduce((s, v) => s + Math.exp(v - max), 0);
      const soft = run(core, table, 'softmax', (put) => {
        const at = put(x);
        return [[at, n], at, n];
      });
      expectClose(
        soft,
        x.map((v) => Math.exp(v - max) / sum),
      );
      const silu = run(core, table, 'silu_mul', (put) => {
        const gate = put(x);
        return [[gate, put(y), n], gate, n];
      });
      expectClose(
        silu,
        x.map((v, i) => (v / (1 + Math.exp(-v))) * (y[i] as number)),
      );
    }
  });
});

function expectClose(got: Float32Array, want: Float32Array): void {
  for (const [i, v] of got.entries())
    expect(Math.abs(v - (want[i] as number))).toBeLessThanOrEqual(2e-6 * Math.abs(want[i] as number) + 1e-12);
}
