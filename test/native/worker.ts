/** Runs steps without end in a worker thread; says when the first has begun. */
import { parentPort, workerData } from 'node:worker_threads';
import { loadRuntime } from '../../src/runtime/load.ts';
import { openTestModel, promptLogits, someTokens } from '../runtime/models.ts';

const model = await openTestModel(workerData as string);
const runtime = await loadRuntime({ ...model, backend: 'native', threads: 2 });
for (let count = 0; ; count++) {
  const step = promptLogits(runtime, someTokens(200, model.config.vocabulary));
  if (count === 0) parentPort?.postMessage('stepping');
  await step;
}
