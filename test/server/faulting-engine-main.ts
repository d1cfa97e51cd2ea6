/** The engine process of `perigee serve`, in which SIGUSR2 makes a thread fault inside native code. */
import { createRequire } from 'node:module';
import { Worker } from 'node:worker_threads';
import { loadEngine } from '../../src/cli/load-engine.ts';
import { serveEngine } from '../../src/engine-process/serve-engine.ts';

const probe = createRequire(import.meta.url).resolve('../../build/native/probe.node');
/** Far beyond the buffer, in pages that no process has. */
const nowhere = 2 ** 46;

serveEngine(loadEngine);
process.on('SIGUSR2', () => {
  const fault = `require(${JSON.stringify(probe)}).call(new ArrayBuffer(64), 'exp_float', 0, ${nowhere}, 1)`;
  new Worker(fault, { eval: true });
});
