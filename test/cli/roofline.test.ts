/** What a token reads on the GPU and in the ranks, and how long that takes at least. */
import { expect, it } from 'vitest';
import { rooflineMilliseconds, tokenBytes } from '../../src/cli/roofline.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { syntheticModel } from '../../src/model/synthetic.ts';
import { modelTensors } from '../../src/model/tensors.ts';

const gguf = syntheticModel({ shape: 'k2', mix: 'q8_0', moeLayers: 60 });
const config = modelConfig(gguf);
const tensors = modelTensors(gguf, config);
const parts = [{ device: 0, firstLayer: 0, end: 61 }];
const hybrid = (resident: number) => ({
  backend: 'hybrid' as const,
  devices: { parts, residentExperts: Array.from({ length: 61 }, (_, layer) => (layer === 0 ? 0 : resident)) },
});

/** 8 experts of 3 matrices in 60 layers, 8.5 bits a weight. */
const routed = 60 * 8 * 3 * 7168 * 2048 * (34 / 32);

it('without a GPU the ranks read everything, with one alone it does', () => {
  const { ranks } = tokenBytes(config, tensors, { backend: 'native', devices: null });
  expect(tokenBytes(config, tensors, { ...hybrid(384), backend: 'cuda' })).toEqual({ device: ranks, ranks: 0 });
});

it('in hybrid the ranks read the chosen experts, less the share that the GPU holds', () => {
  expect(tokenBytes(config, tensors, hybrid(0)).ranks).toBeCloseTo(routed, -3);
  expect(tokenBytes(config, tensors, hybrid(96)).ranks).toBeCloseTo(0.75 * routed, -3);
  const all = tokenBytes(config, tensors, hybrid(0));
  const some = tokenBytes(config, tensors, hybrid(96));
  expect(some.device + some.ranks).toBeCloseTo(all.device + all.ranks, -3);
});

it('both sides take their turns; a rate that counts and is not known leaves the time unknown', () => {
  const bytes = { device: 10e9, ranks: 20e9 };
  expect(rooflineMilliseconds(bytes, { device: 4000, ranks: 400 })).toBeCloseTo(2.5 + 50, 9);
  expect(rooflineMilliseconds(bytes, { device: null, ranks: 400 })).toBeNull();
  expect(rooflineMilliseconds({ device: 10e9, ranks: 0 }, { device: 4000, ranks: null })).toBeCloseTo(2.5, 9);
});
