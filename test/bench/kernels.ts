/**
 * Kernel speed: GB/s of weights in decode (n = 1, 2, 4) and Gop/s (2 x multiply-adds) in prefill (n = 8, 64, 512), per table
 * and type, beside what the machine reads and multiplies with the same instructions. `node test/bench/kernels.ts [TABLE ...] [TYPE ...]`
 */
import { measureNative } from '../../src/runtime/native-addon.ts';
import {
  buildCore,
  Core,
  FAST_TABLES,
  Random,
  randomWeights,
  TYPE_NAMES,
  TYPES,
  type TypeName,
  withoutNative,
} from '../kernels/harness.ts';

const COLS = 2048;
const ROUNDS = 5;
/** Rows of the decode matrix: far more bytes than the caches hold, for the bandwidth figure. */
const DECODE_BYTES = 96e6;
const PREFILL_ROWS = 512;

/** Seconds of the fastest of some calls. */
function fastest(run: () => void): number {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < ROUNDS; i++) {
    const start = performance.now();
    run();
    best = Math.min(best, performance.now() - start);
  }
  return best / 1000;
}

function limitsText(readGbPerSecond: number, int8Gops: number): string {
  return `reads ${readGbPerSecond.toFixed(1)} GB/s, dots ${int8Gops.toFixed(0)} Gop/s`;
}

async function nativeLimits(table: string): Promise<string> {
  const { readGbPerSecond, int8Gops } = await measureNative(1, table);
  return limitsText(readGbPerSecond, int8Gops);
}

function limits(core: Core): string {
  const bytes = 128e6;
  const at = core.alloc(bytes);
  core.memory.fill(1, at, at + bytes);
  const read = fastest(() => core.run('read', null, at, bytes));
  core.release(at);
  const [vectors, turns] = [512, 20_000];
  let perVector = 0;
  const dot = fastest(() => {
    perVector = core.run('dot', null, at, vectors, turns);
  });
  return limitsText(bytes / read / 1e9, (2 * turns * vectors * perVector) / dot / 1e9);
}

/** One matrix filled by repeating a few random rows. */
function putMatrix(core: Core, type: TypeName, rows: number): number {
  const some = randomWeights(new Random(1), type, 16, COLS);
  const rowBytes = some.length / 16;
  const at = core.alloc(rowBytes * rows);
  for (let r = 0; r < rows; r += 16)
    core.memory.set(some.subarray(0, Math.min(16, rows - r) * rowBytes), at + r * rowBytes);
  return at;
}

function measure(core: Core, table: string, type: TypeName, rows: number, n: number): number {
  const top = core.mark();
  const m = {
    type,
    exact: false,
    w: putMatrix(core, type, rows),
    x: core.putActivations(table, type, false, new Random(2).floats(n * COLS), COLS),
    xRows: 0,
    y: core.alloc(4 * n * rows),
    rows,
    cols: COLS,
    n,
  };
  const seconds = fastest(() => core.matmul(table, m));
  core.release(top);
  return seconds;
}

function report(core: Core, table: string, type: TypeName): void {
  const [, elements, size] = TYPES[type];
  const rowBytes = (COLS / elements) * size;
  const rows = Math.floor(DECODE_BYTES / rowBytes);
  const gbs = (seconds: number) => ((rows * rowBytes) / seconds / 1e9).toFixed(1).padStart(6);
  const gops = (n: number) =>
    ((2 * COLS * PREFILL_ROWS * n) / measure(core, table, type, PREFILL_ROWS, n) / 1e9).toFixed(1);
  const decode = [1, 2, 4].map((n) => gbs(measure(core, table, type, rows, n)));
  const prefill = [8, 64, 512].map((n) => gops(n).padStart(6));
  process.stdout.write(`${table.padEnd(8)} ${type.padEnd(7)} ${decode.join(' ')}   ${prefill.join(' ')}\n`);
}

/** Gflop/s (scores and values, 2 x multiply-adds) of 64 tokens of 8 heads, all behind the same `positions`. */
function measureAttention(core: Core, table: string, positions: number): number {
  const top = core.mark();
  const [rows, keyDim, valueDim, pageTokens] = [512, 576, 512, 64];
  const random = new Random(3);
  const page = random.floats(pageTokens * keyDim);
  const pages = Int32Array.from({ length: Math.ceil(positions / pageTokens) }, () => core.put(page));
  const a = {
    q: core.put(random.floats(rows * keyDim)),
    pages: core.put(pages),
    lengths: core.put(new Int32Array(rows).fill(positions)),
    out: core.alloc(4 * rows * valueDim),
    scores: core.alloc(4 * rows * positions),
    scoreStride: positions,
    scale: 0.07,
    rows,
    keyDim,
    valueDim,
    pageTokens,
    exact: false,
  };
  const seconds = fastest(() => core.attention(table, a));
  core.release(top);
  return (2 * rows * positions * (keyDim + valueDim)) / seconds / 1e9;
}

buildCore();
const words = process.argv.slice(2);
const types = TYPE_NAMES.filter((type) => words.includes(type));
const known = FAST_TABLES.filter(([build, table]) => build === 'native' || build === table);
const wanted = known.filter(([, table]) => words.includes(table));
if (withoutNative !== null) process.stdout.write(`no native tables: ${withoutNative}\n`);
for (const [build, table] of wanted.length > 0 ? wanted : known) {
  const core = new Core(build, 400);
  process.stdout.write(`\n${table}, one thread: ${build === 'native' ? await nativeLimits(table) : limits(core)}\n`);
  process.stdout.write('table    type    GB/s, n = 1, 2, 4        Gop/s, n = 8, 64, 512\n');
  for (const type of types.length > 0 ? types : TYPE_NAMES) report(core, table, type);
  const [short, long] = [512, 2048].map((positions) => measureAttention(core, table, positions).toFixed(1));
  process.stdout.write(`attention: ${short} Gflop/s over 512 positions, ${long} over 2,048\n`);
}
