import { availableParallelism } from 'node:os';
import { describe, expect, it } from 'vitest';
import { loadRuntime } from '../../src/runtime/load.ts';
import { promptLogits, someTokens, syntheticTestModel } from './models.ts';
import { describeRuntime } from './runtime.contract.ts';

describeRuntime({
  name: 'wasm',
  isas: ['relaxed', 'simd128', 'scalar'],
  load: ({ gguf, config }, { threads, isa, exact = false, sequences = 1 }) =>
    loadRuntime({ gguf, config, build: isa === 'relaxed' ? 'relaxed' : 'simd128', isa, threads, exact, sequences }),
});

describe('wasm: ranks', () => {
  const load = async (threads: number) => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    return loadRuntime({ ...model, build: 'simd128', threads });
  };

  it('report progress up to all weights', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    const seen: number[] = [];
    const runtime = await loadRuntime({ ...model, build: 'simd128', threads: 2, onProgress: ({ bytesRead }) => seen.push(bytesRead) });
    await runtime.close();
    expect(seen.at(-1)).toBe(runtime.weightBytes);
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
  });

  it('use no CPU while nothing is asked of them', async () => {
    const runtime = await load(Math.min(2, availableParallelism()));
    await promptLogits(runtime, someTokens(8, runtime.config.vocabulary));
    const before = process.cpuUsage();
    await new Promise((resolve) => setTimeout(resolve, 500));
    const { user, system } = process.cpuUsage(before);
    await runtime.close();
    // Half a second of one spinning rank would be 500,000 microseconds.
    expect(user + system).toBeLessThan(200_000);
  });

  it('say which file shrank while it was read', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    const gguf = { ...model.gguf, tensors: new Map([...model.gguf.tensors].map(([name, tensor]) => [name, { ...tensor, offset: tensor.offset + 1e9 }])) };
    await expect(loadRuntime({ ...model, gguf, build: 'simd128', threads: 2 })).rejects.toMatchObject({ code: 'MODEL_FILE_SHRANK' });
  });

  it('fail the step and later ones with ENGINE_FAILED once the engine was closed', async () => {
    const runtime = await load(2);
    await runtime.close();
    await expect(promptLogits(runtime, [1, 2])).rejects.toMatchObject({ code: 'ENGINE_FAILED' });
  });
});
