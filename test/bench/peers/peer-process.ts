/** A peer in its own process, seen from the benchmark: every wait has an end, every failure a name. */
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { PeerMessage, Workload } from './protocol.ts';

export interface PeerSpec {
  readonly name: string;
  /** File of this folder. */
  readonly script: string;
  readonly variant: string;
  readonly env?: Record<string, string>;
}

/** A second and more for each of the slowest peer's 1.2 GB through an HTTP server, four times over. */
const loadSeconds = 120;

export class PeerProcess {
  readonly name: string;
  readonly settings: string;
  readonly #child: ChildProcess;

  private constructor(name: string, settings: string, child: ChildProcess) {
    this.name = name;
    this.settings = settings;
    this.#child = child;
  }

  /** Loads the model; rejects with the reason. */
  static async start(spec: PeerSpec, file: string, threads: number): Promise<PeerProcess> {
    const script = fileURLToPath(new URL(spec.script, import.meta.url));
    const child = fork(script, [file, String(threads), spec.variant], {
      env: { ...process.env, ...spec.env },
      stdio: ['ignore', 'ignore', process.env.PEER_LOG === '1' ? 'inherit' : 'ignore', 'ipc'],
    });
    try {
      const ready = await answer(child, loadSeconds, 'loading');
      if (ready.type !== 'ready') throw new Error(`answered '${ready.type}' to loading`);
      return new PeerProcess(spec.name, ready.settings, child);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  /** Seconds of one workload. A peer that does not answer within `limit` seconds is ended. */
  async measure(workload: Workload, limit: number): Promise<number> {
    const measured = answer(this.#child, limit, `${workload.kind} of ${workload.tokens}`);
    this.#child.send(workload);
    const message = await measured;
    if (message.type !== 'measured') throw new Error(`answered '${message.type}' to a workload`);
    return message.seconds;
  }

  /** Lets the peer end by itself, then makes it. */
  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const gone = new Promise((resolve) => this.#child.once('exit', resolve));
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 5000);
    if (this.#child.connected) this.#child.disconnect();
    await gone;
    clearTimeout(timer);
  }
}

/** The next message of a peer. */
function answer(child: ChildProcess, seconds: number, what: string): Promise<PeerMessage> {
  return new Promise((resolve, reject) => {
    const settle = (act: () => void) => {
      clearTimeout(timer);
      child.off('message', heard).off('exit', died).off('error', died);
      act();
    };
    const heard = (message: PeerMessage) =>
      settle(() => (message.type === 'failed' ? reject(new Error(message.why)) : resolve(message)));
    const died = () =>
      settle(() =>
        reject(new Error(`${what}: the process ended (${child.signalCode ?? `exit code ${child.exitCode}`})`)),
      );
    const timer = setTimeout(
      () => settle(() => reject(new Error(`${what}: no answer in ${seconds.toFixed(0)} s`))),
      seconds * 1000,
    );
    child.on('message', heard).on('exit', died).on('error', died);
  });
}
