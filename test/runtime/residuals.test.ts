/** Residuals that are put in from outside: who takes them, and that nobody else lets them pass unread. */
import { afterEach, describe, expect, it } from 'vitest';
import { modelTensors } from '../../src/model/tensors.ts';
import { startCuda } from '../../src/runtime/cuda-runtime.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import { nativeSupport } from '../../src/runtime/native-addon.ts';
import { promptStep } from '../../src/runtime/prompt-step.ts';
import type { Runtime } from '../../src/runtime/runtime.ts';
import { fakeDevice } from './fake-device.ts';
import { syntheticTestModel } from './models.ts';

const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
const { gguf, config } = model;
const batch = promptStep([1, 2, 3], 0, 3);
const residuals = new Float32Array((config.layers + 1) * 3 * config.hidden);

const open: Runtime[] = [];
afterEach(() => Promise.all(open.splice(0).map((runtime) => runtime.close())));

/** A model on a device that notes which residuals each step brought. */
async function onDevice(taps: boolean) {
  const given: unknown[] = [];
  const device = fakeDevice(model);
  const CudaEngine = class extends device.CudaEngine {
    override step(...step: Parameters<InstanceType<typeof device.CudaEngine>['step']>) {
      given.push(step[6]);
      return super.step(...step);
    }
  };
  const runtime = await startCuda(
    {
      config,
      tensors: modelTensors(gguf, config),
      files: gguf.files.map(({ path }) => path),
      recipes: null,
      isa: null,
      threads: 0,
      exact: false,
      taps,
      profile: false,
      limits: { batchTokens: 16, batchOutputs: 16, batchSequences: 1, pages: 1, context: 64 },
      placement: {
        parts: [{ device: 0, firstLayer: 0, end: config.layers }],
        residentExperts: new Array(config.layers).fill(config.experts),
      },
      onProgress: () => {},
    },
    { CudaEngine },
  );
  open.push(runtime);
  return { runtime, given };
}

describe('residuals of a step', () => {
  it('go to a device that was loaded with taps', async () => {
    const { runtime, given } = await onDevice(true);
    await runtime.step(batch);
    await runtime.step({ ...batch, residuals });
    expect(given).toEqual([undefined, residuals]);
  });

  it('of another size, or without taps, are refused', async () => {
    const tapped = await onDevice(true);
    await expect(tapped.runtime.step({ ...batch, residuals: residuals.subarray(1) })).rejects.toThrow(RangeError);
    const plain = await onDevice(false);
    await expect(plain.runtime.step({ ...batch, residuals })).rejects.toThrow('residual values where 0 are taken');
    expect([...tapped.given, ...plain.given]).toEqual([]);
  });

  it.for(['wasm', 'native'] as const)('are refused by %s, which computes its own', async (backend, { skip }) => {
    const support = nativeSupport();
    if (backend === 'native' && !support.available) skip(support.why);
    const runtime = await loadRuntime({ ...model, backend, threads: 1, taps: true });
    open.push(runtime);
    await expect(runtime.step({ ...batch, residuals })).rejects.toThrow('residual values where 0 are taken');
    await expect(runtime.step(batch)).resolves.toBeDefined();
  });
});
