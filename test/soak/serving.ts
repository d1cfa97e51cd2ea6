/** `perigee serve` as a process of its own, and what the system says of it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const main = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));

export interface Health {
  readonly status: string;
  readonly queue: { readonly running: number; readonly waiting: number };
  readonly cache: { readonly pages: { readonly used: number; readonly cached: number; readonly free: number } } | null;
  readonly engine: { readonly restarts: number };
}

/** What must be as before when the work is done. */
export interface Footprint {
  readonly megabytes: number;
  /** Of a snapshot of what is alive in JavaScript: memory that is merely not yet collected is not in it. */
  readonly heapMegabytes: number;
  readonly files: number;
  readonly threads: number;
}

export class Serving {
  readonly url: string;
  readonly #process: ChildProcess;
  /** Where heap snapshots go. */
  readonly #folder: string;

  private constructor(process: ChildProcess, url: string, folder: string) {
    this.#process = process;
    this.#folder = folder;
    this.url = url;
  }

  /** Starts it on a free port with Nano. Its log goes nowhere: the front's own errors are seen by its clients. */
  static async start(): Promise<Serving> {
    const folder = mkdtempSync(join(tmpdir(), 'perigee-soak-'));
    // The engine process inherits these.
    const flags = ['--heapsnapshot-signal=SIGUSR2', `--diagnostic-dir=${folder}`];
    const args = [main, 'serve', '--port', '0', '--queue-length', '512'];
    const child = spawn(process.execPath, [...flags, ...args], { stdio: ['ignore', 'inherit', 'pipe'] });
    const url = await new Promise<string>((resolve, reject) => {
      let said = '';
      child.stderr?.on('data', (chunk: Buffer) => {
        if (said.length < 1e5) said += chunk;
        const ready = /is ready at (http:\S+)\/v1/.exec(said);
        if (ready?.[1]) resolve(ready[1]);
      });
      child.once('exit', (code) => reject(new Error(`serve ended with ${code}: ${said}`)));
    });
    return new Serving(child, url, folder);
  }

  get front(): number {
    return this.#process.pid as number;
  }

  /** Process ids of the engines that live: one, or none while it is started again. */
  engines(): number[] {
    const children = readFileSync(`/proc/${this.front}/task/${this.front}/children`, 'utf8');
    return children.split(' ').filter(Boolean).map(Number);
  }

  async health(): Promise<Health> {
    return (await (await fetch(`${this.url}/health`)).json()) as Health;
  }

  /** Waits until the engine is ready and has nothing to do. */
  async idle(): Promise<Health> {
    for (;;) {
      const health = await this.health();
      const { running, waiting } = health.queue;
      if (health.status === 'failed') throw new Error('the engine was given up');
      if (health.status === 'ready' && running + waiting === 0 && health.cache?.pages.used === 0) return health;
      await sleep(100);
    }
  }

  /** SIGTERM; resolves to the exit code. */
  async end(): Promise<number | null> {
    const exited = once(this.#process, 'exit') as Promise<[number | null]>;
    this.#process.kill('SIGTERM');
    const [code] = await exited;
    rmSync(this.#folder, { recursive: true });
    return code;
  }

  async footprint(pid: number): Promise<Footprint> {
    const files = readdirSync(`/proc/${pid}/fd`).length;
    const heapMegabytes = Math.round((await this.#heapBytes(pid)) / 1e5) / 10;
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1]);
    return { megabytes: Math.round(field('VmRSS') / 1024), heapMegabytes, files, threads: field('Threads') };
  }

  async #heapBytes(pid: number): Promise<number> {
    process.kill(pid, 'SIGUSR2');
    for (let last = -1; ; ) {
      await sleep(1000);
      const [name] = readdirSync(this.#folder);
      if (name === undefined) continue;
      const file = join(this.#folder, name);
      const { size } = statSync(file);
      if (size > 0 && size === last) {
        rmSync(file);
        return size;
      }
      last = size;
    }
  }
}
