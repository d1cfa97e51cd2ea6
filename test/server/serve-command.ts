/** `perigee serve` as people run it: a front process, an engine process, and Nano. */
import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const main = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));

export interface ServeCommand {
  readonly process: ChildProcess;
  /** "http://127.0.0.1:40123" */
  readonly url: string;
  /** Everything it has written to stderr. */
  log(): string;
}

/** Resolves when the model is loaded. */
export async function startServe(...options: string[]): Promise<ServeCommand> {
  const stdio = ['ignore', 'inherit', 'pipe'] as const;
  const server = spawn(process.execPath, [main, 'serve', '--port', '0', ...options], { stdio: [...stdio] });
  let said = '';
  const url = await new Promise<string>((resolve, reject) => {
    server.stderr?.on('data', (chunk: Buffer) => {
      said += chunk;
      const ready = /is ready at (http:\S+)\/v1/.exec(said);
      if (ready?.[1]) resolve(ready[1]);
    });
    server.once('exit', (code) => reject(new Error(`serve ended with ${code}: ${said}`)));
  });
  return { process: server, url, log: () => said };
}
