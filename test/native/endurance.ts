/**
 * Loads and closes Nano many times, then runs many steps on one engine, and prints the memory of the process in between:
 * `node test/native/endurance.ts [LOADS] [STEPS]`, or `make endurance`.
 */
import { nanoFile } from '../../src/runtime/assets.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import { openTestModel, promptLogits } from '../runtime/models.ts';

const [loads = 1000, steps = 10_000] = process.argv.slice(2).map(Number);
const model = await openTestModel(nanoFile);
const load = () => loadRuntime({ ...model, backend: 'native', threads: 2, contextTokens: 512 });
const report = (what: string) => console.log(`${what}: ${(process.memoryUsage().rss / 1e6).toFixed(0)} MB`);

for (let count = 1; count <= loads; count++) {
  const runtime = await load();
  await promptLogits(runtime, [1, 2, 3]);
  await runtime.close();
  if (count % Math.ceil(loads / 10) === 0 || count === 20) report(`${count} loads`);
}
const runtime = await load();
for (let done = 0; done < steps; done++) {
  const position = done % 500;
  await runtime.step({
    tokens: Int32Array.of((done * 7919) % model.config.vocabulary),
    positions: Int32Array.of(position),
    sequences: Int32Array.of(0),
    pageTables: [Int32Array.from({ length: 8 }, (_, page) => page)],
    outputs: Int32Array.of(0),
  });
  if ((done + 1) % Math.ceil(steps / 5) === 0) report(`${done + 1} steps`);
}
await runtime.close();
report('closed');
