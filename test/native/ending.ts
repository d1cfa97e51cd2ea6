/** Ends with an engine in the state that is named: `node ending.ts MODEL closed|dropped|'left running'`. */
import { loadRuntime } from '../../src/runtime/load.ts';
import type { Runtime } from '../../src/runtime/runtime.ts';
import { openTestModel, promptLogits, someTokens } from '../runtime/models.ts';

const [, , path = '', how] = process.argv;
const model = await openTestModel(path);
let runtime: Runtime | null = await loadRuntime({ ...model, backend: 'native', threads: 2 });
await promptLogits(runtime, [1, 2, 3]);
if (how === 'closed') await runtime.close();
if (how === 'dropped') {
  runtime = null;
  for (let i = 0; i < 5; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
if (how === 'left running' && runtime) {
  promptLogits(runtime, someTokens(200, model.config.vocabulary)).catch(() => {});
  setTimeout(() => {
    process.stdout.write('ended\n', () => process.exit(0));
  }, 5);
} else {
  console.log('ended');
}
