/**
 * `perigee conform` with a contestant that no command line can name: the core in which one kernel is wrong.
 * Arguments: the broken core, the report to write, and whether to print JSON.
 */
import { conclude } from '../../src/cli/conform.ts';
import { conform } from '../../src/conform/conform.ts';
import { nanoFile } from '../../src/runtime/assets.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import { openTokenizer } from '../../src/tokenizer/open.ts';
import { openTestModel, someTokens } from '../runtime/models.ts';

const [core = '', report = '', json] = process.argv.slice(2);
const model = await openTestModel(nanoFile);
const options = { ...model, backend: 'wasm', isa: 'simd128', threads: 2, taps: true, batchTokens: 64 } as const;
const result = await conform(
  [
    { name: 'wasm:simd128', load: () => loadRuntime(options) },
    { name: 'broken', load: () => loadRuntime({ ...options, core }) },
  ],
  someTokens(90, model.config.vocabulary),
);
await conclude(result, await openTokenizer(nanoFile), { report, json: json === 'json' });
