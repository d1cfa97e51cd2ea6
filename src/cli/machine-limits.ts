/** What this machine can do at most, measured through the same code the engine runs: native, or WebAssembly. */
import { readFile } from 'node:fs/promises';
import { Piscina } from 'piscina';
import { coreFile, entryFile } from '../runtime/assets.ts';
import { measureNative } from '../runtime/native-addon.ts';
import type { Plan } from '../select/select.ts';
import type { LimitsResult, LimitsTask, Span } from './limits-worker.ts';

export interface MachineLimits {
  readonly readGbPerSecond: number;
  /** 10^9 integer operations a second of 8-bit dots from the first-level cache; a multiply and an add are two. */
  readonly int8Gops: number;
}

type RanksOf = Pick<Plan, 'ranks' | 'isa' | 'threads' | 'cpus'>;

/** The best of them is the limit; anything else on the machine only slows a round down. */
const rounds = 3;

/** Measures with as many threads as the plan has ranks, on the same CPUs. Takes a second or two, and 256 MB a thread. */
export function measureMachine({ ranks, isa, threads, cpus }: RanksOf): Promise<MachineLimits> {
  if (ranks === 'native') return measureNative(threads, isa, cpus ?? []);
  return measureWasm(threads, isa === 'relaxed' ? 'relaxed' : 'simd128');
}

async function measureWasm(threads: number, core: 'simd128' | 'relaxed'): Promise<MachineLimits> {
  const module = await WebAssembly.compile(await readFile(coreFile(core)));
  const pool = new Piscina({
    filename: entryFile('src/cli/limits-worker'),
    name: 'measureLimits',
    minThreads: threads,
    maxThreads: threads,
    concurrentTasksPerWorker: 1,
    atomics: 'disabled',
  });
  try {
    const task: LimitsTask = { module, threads, arrivals: new SharedArrayBuffer(8 * rounds), rounds };
    const results: LimitsResult[] = await Promise.all(Array.from({ length: threads }, () => pool.run(task)));
    const best = (kind: keyof LimitsResult) =>
      Math.max(
        ...Array.from({ length: rounds }, (_, round) =>
          perMillisecond(results.map((each) => each[kind][round] as Span)),
        ),
      );
    return { readGbPerSecond: best('read') / 1e6, int8Gops: best('int8') / 1e6 };
  } finally {
    await pool.destroy();
  }
}

/** All that was done, over the time from the first begin to the last end. */
function perMillisecond(spans: readonly Span[]): number {
  const amount = spans.reduce((sum, each) => sum + each.amount, 0);
  return amount / (Math.max(...spans.map(({ end }) => end)) - Math.min(...spans.map(({ begin }) => begin)));
}
