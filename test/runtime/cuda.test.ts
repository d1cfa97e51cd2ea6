/** Models on a GPU, alone and with expert ranks, against the CPU: only where there is one. */
import { describe, expect, it } from 'vitest';
import type { ModelConfig } from '../../src/model/config.ts';
import { nanoFile } from '../../src/runtime/assets.ts';
import { cudaSupport } from '../../src/runtime/cuda-addon.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import type { Runtime } from '../../src/runtime/runtime.ts';
import {
  meanDivergence,
  openTestModel,
  promptLogits,
  someTokens,
  syntheticTestModel,
  type TestModel,
} from './models.ts';
import { describeRuntime, everyMix, type LoadWishes } from './runtime.contract.ts';

const support = cudaSupport();

/** Everything on the first device; of the routed experts, `resident` of each layer. */
const placed = ({ layers, denseLayers }: ModelConfig, resident: number) => ({
  parts: [{ device: 0, firstLayer: 0, end: layers }],
  residentExperts: Array.from({ length: layers }, (_, layer) => (layer < denseLayers ? 0 : resident)),
});

const onDevice = ({ gguf, config }: TestModel, { sequences = 1 }: Partial<LoadWishes>): Promise<Runtime> =>
  loadRuntime({ gguf, config, backend: 'cuda', threads: 0, sequences, cuda: placed(config, config.experts) });

const withRanks =
  (ranks: 'native' | 'wasm', resident: number) =>
  ({ gguf, config }: TestModel, { threads = 2, sequences = 1 }: Partial<LoadWishes>): Promise<Runtime> =>
    loadRuntime({ gguf, config, backend: 'hybrid', ranks, threads, sequences, cuda: placed(config, resident) });

const ways = {
  cuda: onDevice,
  'hybrid with native ranks': withRanks('native', 0),
  'hybrid with WASM ranks': withRanks('wasm', 0),
  'hybrid with some experts on the device': withRanks('native', 3),
};

if (support.available) {
  for (const [name, load] of Object.entries(ways)) describeRuntime({ name, isas: ['device'], equal: 'band', load });
} else {
  it.skip(`GPUs: ${support.why}`, () => {});
}

describe.skipIf(!support.available).each(Object.entries(ways))('%s against the CPU', (_, load) => {
  const compare = async (model: TestModel, count: number) => {
    const tokens = someTokens(count, model.config.vocabulary);
    const cpu = await loadRuntime({ ...model, backend: 'native', threads: 2 });
    const gpu = await load(model, {});
    try {
      const expected = await promptLogits(cpu, tokens);
      expect(meanDivergence(await promptLogits(gpu, tokens), expected)).toBeLessThan(1e-3);
      const single = await promptLogits(gpu, tokens.slice(0, 6), [1]);
      expect(meanDivergence(single, expected.slice(0, 6))).toBeLessThan(1e-3);
    } finally {
      await Promise.all([cpu.close(), gpu.close()]);
    }
  };

  it('gives the distributions of Nano', async () => {
    await compare(await openTestModel(nanoFile), 200);
  });

  it.each(everyMix)('gives the distributions of %s weights', async (mix) => {
    await compare(await syntheticTestModel({ shape: 'tiny', mix }), 40);
  });
});
