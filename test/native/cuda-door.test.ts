/** The addon's part for GPUs as far as a machine without one can tell: what there is, what it refuses. */
import { describe, expect, it } from 'vitest';
import type { CudaAddon, CudaEngineOptions } from '../../src/runtime/cuda-addon.ts';
import { writeConfig } from '../../src/runtime/layout.ts';
import { nativeAddon, nativeSupport } from '../../src/runtime/native-addon.ts';
import { syntheticTestModel } from '../runtime/models.ts';

const support = nativeSupport();
const addon = support.available ? (nativeAddon() as Partial<CudaAddon>) : {};
const built = addon.CudaEngine !== undefined;

const { config } = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
const limits = {
  ranks: 1,
  batchTokens: 64,
  batchOutputs: 16,
  batchSequences: 4,
  pages: 32,
  pageTokens: 64,
  context: 512,
  exact: false,
  spins: 0,
  taps: false,
  expertsOnly: false,
};
type Wishes = Partial<typeof limits> & Partial<Pick<CudaEngineOptions, 'parts' | 'residentExperts'>>;

function optionsWith({ parts, residentExperts, ...changed }: Wishes = {}): CudaEngineOptions {
  const memory = new ArrayBuffer(1024);
  const at = writeConfig(memory, 0, config, { ...limits, ...changed });
  return {
    config: new Uint8Array(memory, at.config, at.limits - at.config),
    limits: new Uint8Array(memory, at.limits, at.end - at.limits),
    parts: parts ?? Int32Array.of(0, 0, config.layers),
    residentExperts: residentExperts ?? new Int32Array(config.layers).fill(config.experts, config.denseLayers),
    profile: false,
    waitMilliseconds: 1000,
  };
}

if (!support.available) it.skip(`native: ${support.why}`, () => {});
else if (!built) it.skip('the addon was built without CUDA', () => {});

describe.skipIf(!support.available)('the addon', () => {
  it('tells the devices, or why there are none', () => {
    const found = addon.cudaSupport?.();
    if (found?.available) expect(found.devices.length).toBeGreaterThan(0);
    else expect(found?.why).toMatch(/no device|without CUDA/);
  });
});

describe.skipIf(!built)('an engine on devices', () => {
  const { CudaEngine } = addon as CudaAddon;
  const refused: [string, Wishes, RegExp][] = [
    ['float activations', { exact: true }, /float activations/],
    ['a shape that the engine refuses', { pages: 0 }, /shape/],
    ['layers that no part has', { parts: Int32Array.of(0, 0, 1, 0, 2, config.layers) }, /gaps/],
    ['parts that end too soon', { parts: Int32Array.of(0, 0, 1) }, /gaps/],
    ['more experts than a layer has', { residentExperts: new Int32Array(config.layers).fill(10_000) }, /experts/],
    ['experts of too few layers', { residentExperts: new Int32Array(0) }, /experts/],
  ];
  it.each(refused)('refuses %s', (_, wishes, why) => {
    expect(() => new CudaEngine(optionsWith(wishes))).toThrow(why);
  });
});
