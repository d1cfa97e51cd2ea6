/** One engine process, from fork to its end. Knows nothing of requests or restarts. */
import { type ChildProcess, fork } from 'node:child_process';
import type { EngineMessage, FrontMessage, WireError } from './protocol.ts';

/** How long a process that was asked to close may take before it is killed. A step of a large model fits in it. */
const closeMilliseconds = 2000;

export interface EngineChildEvents {
  readonly message: (message: EngineMessage) => void;
  /** Once, after the last message. `error` is what the process said itself before it ended, if it could. */
  readonly ended: (what: string, error: WireError | null) => void;
}

export class EngineChild {
  readonly #process: ChildProcess;
  readonly #gone: Promise<void>;
  #error: WireError | null = null;
  #killedFor: string | null = null;

  /** `entry` is a module that calls serveEngine. Its output goes to stderr: stdout belongs to the command. */
  constructor(entry: string, events: EngineChildEvents) {
    this.#process = fork(entry, { serialization: 'advanced', stdio: ['ignore', 2, 2, 'ipc'] });
    const killWithFront = () => void this.#process.kill('SIGKILL');
    process.once('exit', killWithFront);
    this.#process.on('message', (message: EngineMessage) => {
      if (message.type === 'engine-failed') this.#error = message.error;
      else events.message(message);
    });
    // A process that cannot even start emits this, and then maybe no 'close'.
    const spawnError = new Promise<string>((resolve) => this.#process.once('error', (error) => resolve(error.message)));
    // 'close' comes after the channel is drained, 'exit' may come before the last messages.
    const closed = new Promise<string>((resolve) =>
      this.#process.once('close', (code, signal) => resolve(describeEnd(code, signal))),
    );
    this.#gone = Promise.race([spawnError, closed]).then((what) => {
      process.removeListener('exit', killWithFront);
      events.ended(this.#killedFor ?? what, this.#error);
    });
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  send(message: FrontMessage): void {
    // A failure to send means the process is gone; `ended` tells.
    if (this.#process.connected) this.#process.send(message, () => {});
  }

  /** Ends the process at once; `why` is then what `ended` says. */
  kill(why: string): void {
    this.#killedFor = why;
    this.#process.kill('SIGKILL');
  }

  /** Lets the process end by itself, or makes it. */
  async close(): Promise<void> {
    this.send({ type: 'close' });
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), closeMilliseconds);
    await this.#gone;
    clearTimeout(timer);
  }
}

function describeEnd(code: number | null, signal: NodeJS.Signals | null): string {
  return signal === null ? `its process ended with exit code ${code}` : `its process was ended by ${signal}`;
}
