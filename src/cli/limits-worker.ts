/** Measures one thread's share of the machine's limits, in step with the other threads. */
import { type CoreExports, firstStackTop, instantiate, sharedMemory } from '../../wasm/core.ts';

export interface LimitsTask {
  readonly module: WebAssembly.Module;
  readonly threads: number;
  /** int32 [2 * rounds]: how many threads have arrived at each measurement. */
  readonly arrivals: SharedArrayBuffer;
  readonly rounds: number;
}

/** What one thread did, and from when to when (milliseconds on a clock that all threads share). */
export interface Span {
  readonly amount: number;
  readonly begin: number;
  readonly end: number;
}

/** Bytes read and integer operations done, of each round. */
export interface LimitsResult {
  readonly read: readonly Span[];
  readonly int8: readonly Span[];
}

interface ProbeExports extends CoreExports {
  probe_read(address: number, bytes: number): number;
  /** Dots `vectors` vectors `turns` times over; returns the multiply-adds of one vector. */
  probe_dot(address: number, vectors: number, turns: number): number;
}

/** Larger than any cache's share of one thread, so that memory is read and not a cache. */
const areaBytes = 256 << 20;
const passes = 4;
/** 8 KiB: well within the first-level cache. */
const dotVectors = 512;
const dotTurns = 50_000;

/** Piscina's entry. */
export function measureLimits(task: LimitsTask): LimitsResult {
  const arrivals = new Int32Array(task.arrivals);
  const memory = sharedMemory(areaBytes + (4 << 20));
  const core = instantiate(task.module, memory) as ProbeExports;
  const begin = firstStackTop(core);
  // Touched once: an untouched page is one page of zeros for all, which a cache holds.
  new Uint8Array(memory.buffer, begin, areaBytes).fill(1);
  core.probe_dot(begin, dotVectors, dotTurns / 10);
  const read: Span[] = [];
  const int8: Span[] = [];
  for (let round = 0; round < task.rounds; round++) {
    arrive(arrivals, 2 * round, task.threads);
    read.push(
      span(() => {
        for (let pass = 0; pass < passes; pass++) core.probe_read(begin, areaBytes);
        return passes * areaBytes;
      }),
    );
    arrive(arrivals, 2 * round + 1, task.threads);
    // A multiply and an add are two operations.
    int8.push(span(() => 2 * dotVectors * dotTurns * core.probe_dot(begin, dotVectors, dotTurns)));
  }
  return { read, int8 };
}

/** Waits until all threads are here. */
function arrive(arrivals: Int32Array, place: number, threads: number): void {
  let here = Atomics.add(arrivals, place, 1) + 1;
  if (here === threads) Atomics.notify(arrivals, place);
  for (; here < threads; here = Atomics.load(arrivals, place)) Atomics.wait(arrivals, place, here, 1);
}

function span(work: () => number): Span {
  const now = () => performance.timeOrigin + performance.now();
  const begin = now();
  const amount = work();
  return { amount, begin, end: now() };
}
