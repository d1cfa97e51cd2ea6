/** A rank: one long Piscina task that loads its shards, then runs its share of every step until told to stop. */
import { type ErrorCode, PerigeeError } from '../src/errors.ts';
import { type CoreExports, instantiate } from './core.ts';
import { type LoadedShard, loadShard } from './load-shard.ts';
import { Control, controlWords, jobBytes, type RankTask } from './rank-task.ts';

/** A failure with a code, as plain data: classes do not survive the way between threads. */
export interface RankFailure {
  readonly code: ErrorCode;
  readonly message: string;
}

/** Piscina's entry. Resolves to null when the runtime says quit; rejects when the core traps. */
export async function runRank(task: RankTask): Promise<RankFailure | null> {
  try {
    await loadAndServe(task);
    return null;
  } catch (error) {
    if (error instanceof PerigeeError) return { code: error.code, message: error.message };
    throw error;
  }
}

async function loadAndServe(task: RankTask): Promise<void> {
  const control = new Int32Array(task.state.buffer, task.control, controlWords(task.ranks));
  const shards: LoadedShard[] = [];
  let loadedBytes = 0;
  for (const shard of task.shards) {
    shards.push(
      await loadShard(task.module, shard, task.files, (bytes) => {
        loadedBytes += bytes;
        Atomics.store(control, Control.FirstRank + task.rank, Math.floor(loadedBytes / 1024));
      }),
    );
  }
  const clock = { last: 0 };
  const core = stateInstance(task, shards, clock);
  Atomics.add(control, Control.Loaded, 1);
  Atomics.notify(control, Control.Loaded);
  serveSteps(task, core, control, clock);
}

/** Runs steps as their sequence number rises; the last rank to finish reports the step as done. */
function serveSteps(task: RankTask, core: CoreExports, control: Int32Array, clock: Clock): void {
  for (let seen = 0; ; seen++) {
    while (Atomics.load(control, Control.Sequence) === seen) Atomics.wait(control, Control.Sequence, seen);
    if (Atomics.load(control, Control.Quit)) return;
    clock.last = performance.now();
    core.engine_forward(task.engine, task.rank);
    if (Atomics.add(control, Control.Finished, 1) + 1 === task.ranks) {
      Atomics.store(control, Control.Finished, 0);
      Atomics.store(control, Control.Done, seen + 1);
      Atomics.notify(control, Control.Done);
    }
  }
}

/** When the rank's last stage ended. */
interface Clock {
  last: number;
}

/** The rank's instance on the state memory; its shard calls copy activations in and results out. */
function stateInstance(task: RankTask, shards: readonly LoadedShard[], clock: Clock): CoreExports {
  const state = new Uint8Array(task.state.buffer);
  const times = new Float64Array(task.state.buffer, task.stageTimes);
  const kernels = shards.map(({ core }) => core.isa_kernels(task.isaIndex));
  return instantiate(task.module, task.state, task.stackTop, {
    shard_call(index, jobs, count, input, inputBytes, output, outputBegin, outputEnd) {
      const { core, bytes, shard } = shards[index] as LoadedShard;
      bytes.set(state.subarray(jobs, jobs + count * jobBytes), shard.jobsAddress);
      bytes.set(state.subarray(input, input + inputBytes), shard.inputAddress);
      core.run_jobs(kernels[index] as number, shard.jobsAddress, count, shard.inputAddress, shard.outputAddress);
      state.set(
        bytes.subarray(shard.outputAddress + outputBegin, shard.outputAddress + outputEnd),
        output + outputBegin,
      );
    },
    stage_done(stage) {
      const now = performance.now();
      times[stage] = (times[stage] as number) + now - clock.last;
      clock.last = now;
    },
  });
}
