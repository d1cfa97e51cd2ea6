/** Every fast table gives the scalar table's bits: kernels.h says in which order floats are added. */
import { beforeAll, describe, expect, it } from 'vitest';
import {
  type Build,
  buildCore,
  Core,
  FAST_TABLES,
  Random,
  randomWeights,
  rowBytes,
  TYPE_NAMES,
  TYPES,
  type TypeName,
  withoutNative,
} from './harness.ts';

interface Shape {
  readonly rows: number;
  readonly cols: number;
  readonly n: number;
}

/** Shapes with tails everywhere: rows around panels of 8 and 32, blocks around the 4 lanes, n around tiles, passes and decode. */
function shapesOf(type: TypeName): Shape[] {
  const elements = TYPES[type][1];
  const cols = elements === 1 ? [1, 15, 16, 40, 256, 300, 531] : [1, 2, 3, 4, 5, 8, 9, 13].map((b) => b * elements);
  const shapes: Shape[] = [];
  for (const [i, c] of cols.entries())
    for (const n of [1, 2, 3, 4, 5, 6, 7, 8, 9]) shapes.push({ rows: 1 + ((i * 9 + n * 5) % 17), cols: c, n });
  const whole = elements === 1 ? 300 : 5 * elements;
  for (let rows = 1; rows <= 17; rows++) shapes.push({ rows, cols: whole, n: 1 + (rows % 6) });
  for (let n = 10; n <= 20; n++) shapes.push({ rows: 31 + (n % 3), cols: whole, n });
  shapes.push({ rows: 9, cols: whole, n: 33 }, { rows: 3, cols: whole, n: 67 }, { rows: 35, cols: whole, n: 131 });
  shapes.push({ rows: 33, cols: 7168, n: 1 }, { rows: 33, cols: 7168, n: 6 });
  return shapes;
}

/** The result's bits of one product by one table, weights one element off 16-byte alignment. */
function product(
  core: Core,
  table: string,
  type: TypeName,
  exact: boolean,
  shape: Shape,
  w: Uint8Array,
  x: Float32Array,
) {
  const { rows, cols, n } = shape;
  const top = core.mark();
  const order = Int32Array.from({ length: n }, (_, i) => n - 1 - i);
  const y = core.alloc(4 * n * rows);
  core.matmul(table, {
    type,
    exact,
    w: core.put(w, type === 'F32' ? 4 : 2),
    x: core.putActivations('scalar', type, exact, x, cols),
    xRows: n % 2 === 0 ? core.put(order) : 0,
    y,
    rows,
    cols,
    n,
  });
  const result = core.bytes(y, 4 * n * rows);
  core.release(top);
  return result;
}

function expectEqual(
  core: Core,
  table: string,
  type: TypeName,
  exact: boolean,
  shape: Shape,
  w: Uint8Array,
  x: Float32Array,
) {
  const ours = product(core, table, type, exact, shape, w, x);
  const spec = product(core, 'scalar', type, exact, shape, w, x);
  if (Buffer.compare(ours, spec) === 0) return;
  const [a, b] = [new Float32Array(ours.buffer), new Float32Array(spec.buffer)];
  const at = a.findIndex((v, i) => !Object.is(v, b[i]));
  expect.fail(`${table} ${type} exact=${exact} ${JSON.stringify(shape)}: y[${at}] is ${a[at]}, scalar says ${b[at]}`);
}

beforeAll(buildCore);

describe.each(FAST_TABLES)('build %s, table %s', (build, table) => {
  const cores = new Map<Build, Core>();
  const core = () => {
    if (!cores.has(build)) cores.set(build, new Core(build, 64));
    return cores.get(build) as Core;
  };

  it.each(TYPE_NAMES)('multiplies %s as the scalar table does, in every shape', (type) => {
    const random = new Random(1);
    for (const shape of shapesOf(type)) {
      const w = randomWeights(random, type, shape.rows, shape.cols);
      expect(w.length).toBe(shape.rows * rowBytes(type, shape.cols));
      const x = random.floats(shape.n * shape.cols);
      expectEqual(core(), table, type, false, shape, w, x);
      expectEqual(core(), table, type, true, shape, w, x);
    }
  });

  it.each(TYPE_NAMES.filter((t) => TYPES[t][1] > 1))('keeps %s exact at extreme codes and activations', (type) => {
    const random = new Random(2);
    const cols = 4 * TYPES[type][1];
    for (const fill of [0xff, 0x00, 0x80, 0x7f])
      for (const n of [1, 3, 6])
        for (const sign of [1, -1]) {
          const w = randomWeights(random, type, 9, cols, fill);
          const x = new Float32Array(n * cols).fill(sign * 3);
          expectEqual(core(), table, type, false, { rows: 9, cols, n }, w, x);
        }
  });
});

describe('the scalar table', () => {
  it.skipIf(withoutNative !== null)(`gives native the bits of WebAssembly${because(withoutNative)}`, () => {
    const [wasm, native] = [new Core('simd128', 64), new Core('native', 64)];
    const random = new Random(3);
    for (const type of TYPE_NAMES)
      for (const exact of [false, true])
        for (const shape of shapesOf(type).filter((_, i) => i % 7 === 0)) {
          const w = randomWeights(random, type, shape.rows, shape.cols);
          const x = random.floats(shape.n * shape.cols);
          const [a, b] = [wasm, native].map((core) => product(core, 'scalar', type, exact, shape, w, x)) as [
            Uint8Array,
            Uint8Array,
          ];
          expect(Buffer.compare(a, b), `${type} exact=${exact} ${JSON.stringify(shape)}`).toBe(0);
        }
  });
});

function because(reason: string | null): string {
  return reason === null ? '' : ` (skipped: ${reason})`;
}
