import { describe, expect, it } from 'vitest';
import { nanoFile } from '../../src/runtime/assets.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import { measureNative, nativeSupport } from '../../src/runtime/native-addon.ts';
import { bitsOf, openTestModel, promptLogits, someTokens, syntheticTestModel, type TestModel } from './models.ts';
import { describeRuntime, everyMix } from './runtime.contract.ts';

const support = nativeSupport();
const isas = support.available ? support.isas : [];

if (support.available) {
  describeRuntime({
    name: 'native',
    isas,
    equal: 'bits',
    load: ({ gguf, config }, { threads, isa, exact = false, sequences = 1 }) =>
      loadRuntime({ gguf, config, backend: 'native', isa, threads, exact, sequences }),
  });
} else {
  it.skip(`native: ${support.why}`, () => {});
}

const wasm = ['relaxed', 'simd128', 'scalar'].map((isa) => ({ backend: 'wasm' as const, isa, threads: 2 }));
const native = isas.map((isa, index) => ({ backend: 'native' as const, isa, threads: 1 + (index % 4) }));

/** Different logits of one prompt run whole and token by token, over all configurations; equal bits make one. */
async function differentLogits(
  model: TestModel,
  tokens: readonly number[],
  ways: readonly { backend: 'wasm' | 'native'; isa: string; threads: number }[],
): Promise<number> {
  const bits = new Set<string>();
  for (const way of ways) {
    const runtime = await loadRuntime({ ...model, ...way });
    const whole = await promptLogits(runtime, tokens);
    const single = await promptLogits(runtime, tokens.slice(0, 5), [1]);
    bits.add(bitsOf([...whole, ...single]));
    await runtime.close();
  }
  return bits.size;
}

describe.skipIf(!support.available)('WebAssembly and native code', () => {
  it('give equal bits for Nano, with every table and 1 to 4 threads', async () => {
    const model = await openTestModel(nanoFile);
    const tokens = someTokens(40, model.config.vocabulary);
    const threads = [1, 2, 3, 4].map((count) => ({
      backend: 'native' as const,
      isa: isas[0] as string,
      threads: count,
    }));
    expect(await differentLogits(model, tokens, [...wasm, ...native, ...threads])).toBe(1);
  });

  it.each(everyMix)('give equal bits for %s weights', async (mix) => {
    const model = await syntheticTestModel({ shape: 'tiny', mix });
    const tokens = someTokens(33, model.config.vocabulary);
    expect(await differentLogits(model, tokens, [...wasm.slice(0, 1), ...native])).toBe(1);
  });

  it('give equal bits for a prompt of 2,000 tokens', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });
    const tokens = someTokens(2000, model.config.vocabulary);
    const fastest = native.slice(0, 1);
    expect(await differentLogits(model, tokens, [...wasm.slice(0, 1), ...fastest])).toBe(1);
  });
});

describe.skipIf(!support.available)('the native addon', () => {
  it('offers the scalar table everywhere and refuses tables by name', async () => {
    expect(isas.at(-1)).toBe('scalar');
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    const load = loadRuntime({ ...model, backend: 'native', isa: 'mmx', threads: 1 });
    await expect(load).rejects.toMatchObject({ code: 'BACKEND_UNAVAILABLE', message: expect.stringContaining('mmx') });
  });

  it('measures what the machine can do with each table', async () => {
    for (const isa of isas) {
      const { readGbPerSecond, int8Gops } = await measureNative(1, isa);
      expect(readGbPerSecond).toBeGreaterThan(0);
      expect(int8Gops).toBeGreaterThan(0);
    }
  });

  it('keeps no memory of engines that were closed', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    const cycle = async (times: number) => {
      for (let i = 0; i < times; i++) {
        const runtime = await loadRuntime({ ...model, backend: 'native', threads: 2 });
        await promptLogits(runtime, [1, 2, 3]);
        await runtime.close();
      }
      return process.memoryUsage().rss;
    };
    const before = await cycle(10);
    // An engine of this model takes 20 MB and more; 30 of them kept would show.
    expect((await cycle(30)) - before).toBeLessThan(100e6);
  });
});
