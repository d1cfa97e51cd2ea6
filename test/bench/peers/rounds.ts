/** The rounds of one number of threads: A B C A B C, workload by workload, with whatever fails named and left behind. */
import { execFile } from 'node:child_process';
import { cpus } from 'node:os';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { LimitsByBackend } from './limits.ts';
import { PeerProcess, type PeerSpec } from './peer-process.ts';
import type { Workload } from './protocol.ts';

export interface Measurement {
  readonly peer: string;
  readonly workload: Workload;
  readonly round: number;
  readonly seconds: number;
}

/** Everything measured with one number of threads. */
export interface Column {
  readonly threads: number;
  readonly limits: LimitsByBackend;
  readonly settings: Record<string, string>;
  readonly measurements: Measurement[];
  /** What is missing, and why. */
  readonly notes: string[];
}

export interface RoundsOptions {
  readonly file: string;
  readonly threads: number;
  readonly peers: readonly PeerSpec[];
  readonly workloads: readonly Workload[];
  readonly rounds: number;
  /** On the clock of performance.now(). */
  readonly deadline: number;
}

/** A workload that would take longer, by the peer's own speed on a shorter prompt, is not asked for. */
const longestSeconds = 45;
/** What takes longer than this is measured in the first round only. */
const onceSeconds = 15;
/** An idle machine of two CPUs shows 1 to 3 %. */
const mostBusy = 0.1;
/** First touches of memory, and compilation of hot loops. */
const warmUps: readonly Workload[] = [
  { kind: 'prefill', tokens: 64 },
  { kind: 'decode', tokens: 16 },
];

export const note = (line: string) => process.stderr.write(`${line}\n`);

export async function measureRounds(options: RoundsOptions): Promise<Column> {
  note(`--threads ${options.threads}: measuring the machine`);
  const busy = await busyShare();
  const limits = await machineLimits(options.threads);
  const notes =
    busy > mostBusy ? [`others kept the CPUs ${(100 * busy).toFixed(0)} % busy before: do not trust this`] : [];
  const run = new Run(options, { threads: options.threads, limits, settings: {}, measurements: [], notes });
  try {
    for (const spec of options.peers) await run.start(spec);
    for (let round = 0; round < options.rounds && !run.late(round); round++) await run.round(round);
  } finally {
    await run.stop();
  }
  return run.column;
}

/** How much of all CPUs' time anyone used in a second in which this benchmark does nothing. */
async function busyShare(): Promise<number> {
  const total = () =>
    cpus().reduce(
      ({ all, idle }, { times }) => ({
        all: all + times.user + times.nice + times.sys + times.irq + times.idle,
        idle: idle + times.idle,
      }),
      { all: 0, idle: 0 },
    );
  const before = total();
  await setTimeout(1000);
  const after = total();
  return 1 - (after.idle - before.idle) / (after.all - before.all);
}

async function machineLimits(threads: number): Promise<LimitsByBackend> {
  const script = fileURLToPath(new URL('limits.ts', import.meta.url));
  const { stdout } = await promisify(execFile)(process.execPath, [script, String(threads)]);
  return JSON.parse(stdout) as LimitsByBackend;
}

class Run {
  readonly column: Column;
  readonly #options: RoundsOptions;
  readonly #peers: PeerProcess[] = [];

  constructor(options: RoundsOptions, column: Column) {
    this.#options = options;
    this.column = column;
  }

  async start(spec: PeerSpec): Promise<void> {
    note(`starting ${spec.name}`);
    try {
      const peer = await PeerProcess.start(spec, this.#options.file, this.#options.threads);
      this.#peers.push(peer);
      this.column.settings[peer.name] = peer.settings;
      for (const workload of warmUps) await this.#measure(peer, workload, null);
    } catch (error) {
      this.#missing(`${spec.name} is left out: ${reason(error)}`);
    }
  }

  async round(round: number): Promise<void> {
    for (const workload of this.#options.workloads) {
      for (const peer of [...this.#peers]) {
        if (this.late(round)) return;
        if (this.#asks(peer.name, workload, round)) await this.#measure(peer, workload, round);
      }
    }
  }

  late(round: number): boolean {
    const late = performance.now() > this.#options.deadline;
    if (late) this.#missing(`the time was up in round ${round + 1}`);
    return late;
  }

  async stop(): Promise<void> {
    await Promise.all(this.#peers.map((peer) => peer.stop()));
  }

  #asks(name: string, workload: Workload, round: number): boolean {
    const own = this.column.measurements.filter(({ peer }) => peer === name);
    if (round > 0) return (own.find((each) => each.workload === workload)?.seconds ?? onceSeconds) < onceSeconds;
    const shorter = own.filter((each) => each.workload.kind === 'prefill').at(-1);
    if (workload.kind === 'decode' || shorter === undefined) return true;
    const expected = (shorter.seconds * workload.tokens) / shorter.workload.tokens;
    if (expected <= longestSeconds) return true;
    this.#missing(`${name}: no ${workload.kind} of ${workload.tokens}, it would take about ${expected.toFixed(0)} s`);
    return false;
  }

  /** A warm-up has no round. A peer that fails is ended: what it does later could only disturb the others. */
  async #measure(peer: PeerProcess, workload: Workload, round: number | null): Promise<void> {
    try {
      const seconds = await peer.measure(workload, 2 * longestSeconds);
      if (round === null) return;
      this.column.measurements.push({ peer: peer.name, workload, round, seconds });
      const rate = (workload.tokens / seconds).toFixed(1);
      note(`round ${round + 1}: ${peer.name}, ${workload.kind} of ${workload.tokens}: ${rate} tokens/s`);
    } catch (error) {
      const at = round === null ? 'warming up' : `in round ${round + 1}`;
      this.#missing(`${peer.name} gave up ${at}: ${reason(error)}`);
      this.#peers.splice(this.#peers.indexOf(peer), 1);
      await peer.stop();
    }
  }

  #missing(why: string): void {
    if (this.column.notes.includes(why)) return;
    this.column.notes.push(why);
    note(why);
  }
}

function reason(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0] ?? '';
}
