import { availableParallelism } from 'node:os';
import { describe, expect, it, vi } from 'vitest';
import { loadRuntime } from '../../src/runtime/load.ts';
import { bitsOf, promptLogits, someTokens, syntheticTestModel } from './models.ts';
import { pools } from './recorded-pools.ts';
import { describeRuntime } from './runtime.contract.ts';

vi.mock('piscina', async (original) => (await import('./recorded-pools.ts')).recordPools(original));

describeRuntime({
  name: 'wasm',
  isas: ['relaxed', 'simd128', 'scalar'],
  equal: 'bits',
  load: ({ gguf, config }, { threads, isa, exact = false, sequences = 1 }) =>
    loadRuntime({ gguf, config, backend: 'wasm', isa, threads, exact, sequences }),
});

describe('wasm: ranks', () => {
  const load = async (threads: number) => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    return loadRuntime({ ...model, backend: 'wasm', threads });
  };

  it('give the same bits whether weights lie in one memory each or in many', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });
    const tokens = someTokens(40, model.config.vocabulary);
    const bits = [];
    const options = { ...model, backend: 'wasm', threads: 2, batchTokens: 64 } as const;
    for (const shardBytes of [2 ** 32, 4 << 20, 3 << 20]) {
      const runtime = await loadRuntime({ ...options, shardBytes });
      bits.push(bitsOf(await promptLogits(runtime, tokens)));
      await runtime.close();
    }
    expect(new Set(bits).size).toBe(1);
    await expect(loadRuntime({ ...options, shardBytes: 1 << 20 })).rejects.toMatchObject({ code: 'MATRIX_TOO_LARGE' });
  });

  it('fail the step in flight with ENGINE_FAILED when a worker is killed', async () => {
    const runtime = await load(2);
    const long = promptLogits(runtime, someTokens(400, runtime.config.vocabulary));
    await pools.at(-1)?.threads[1]?.terminate();
    await expect(long).rejects.toMatchObject({
      code: 'ENGINE_FAILED',
      message: expect.stringContaining('rank stopped'),
    });
    await expect(promptLogits(runtime, [1, 2])).rejects.toMatchObject({ code: 'ENGINE_FAILED' });
    await runtime.close();
  });

  it('report progress up to all weights', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    const seen: number[] = [];
    const runtime = await loadRuntime({
      ...model,
      backend: 'wasm',
      threads: 2,
      onProgress: ({ bytesRead }) => seen.push(bytesRead),
    });
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
    const gguf = {
      ...model.gguf,
      tensors: new Map(
        [...model.gguf.tensors].map(([name, tensor]) => [name, { ...tensor, offset: tensor.offset + 1e9 }]),
      ),
    };
    await expect(loadRuntime({ ...model, gguf, backend: 'wasm', threads: 2 })).rejects.toMatchObject({
      code: 'MODEL_FILE_SHRANK',
    });
  });

  it('fail the step and later ones with ENGINE_FAILED once the engine was closed', async () => {
    const runtime = await load(2);
    await runtime.close();
    await expect(promptLogits(runtime, [1, 2])).rejects.toMatchObject({ code: 'ENGINE_FAILED' });
  });
});
