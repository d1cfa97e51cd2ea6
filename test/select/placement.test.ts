/** Where the parts of Kimi K2 and of smaller models go, on recorded machines. */
import { describe, expect, it } from 'vitest';
import { modelNeeds } from '../../src/model/fit.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { type SyntheticOptions, syntheticModel } from '../../src/model/synthetic.ts';
import { modelTensors } from '../../src/model/tensors.ts';
import type { Machine } from '../../src/select/machine.ts';
import type { OptimizeWishes } from '../../src/select/optimize-wishes.ts';
import type { DevicePart, LayerWish, ModelNeeds } from '../../src/select/placement.ts';
import { type Plan, selectBackend, type Wishes } from '../../src/select/select.ts';
import {
  h200Machine,
  oldGpuMachine,
  rtx4090Machine,
  sapphireRapids,
  smallGpuMachine,
  twoGpuMachine,
} from './machines.ts';

function needsOf(options: SyntheticOptions, contextTokens = 8192): ModelNeeds {
  const gguf = syntheticModel(options);
  const config = modelConfig(gguf);
  return modelNeeds(config, modelTensors(gguf, config), { contextTokens, sequences: 1, batchTokens: 256 });
}

const kimiK2 = needsOf({ shape: 'k2', mix: 'q4_k_m', moeLayers: 60 });
const eightLayers = needsOf({ shape: 'k2', mix: 'q4_k_m', moeLayers: 7 });
const small = needsOf({ shape: 'bench-1b', mix: 'q4_k_m' });

const withMemory = (machine: Machine, memoryAvailable: number): Machine => ({ ...machine, memoryAvailable });
const line = ({ reasons }: Plan, name: string) => reasons.find((reason) => reason.startsWith(`${name}: `));
const layersOf = (parts: readonly DevicePart[]) =>
  parts.map(({ device, firstLayer, end }) => [device, firstLayer, end]);

describe('where nothing is asked for', () => {
  it('a model that fits on a GPU goes there whole, and needs no ranks', () => {
    const plan = selectBackend(smallGpuMachine, {}, small);
    expect(plan).toMatchObject({ backend: 'cuda', ranks: null, isa: 'sm_86', threads: 0, cpus: null });
    expect(plan.devices).toEqual({
      parts: [{ device: 0, firstLayer: 0, end: 10 }],
      residentExperts: [0, ...Array(9).fill(64)],
    });
    expect(plan.memory).toMatchObject([{ place: 'GPU 0', fits: true }]);
  });

  it('Kimi K2 beside a consumer GPU is shared with the CPU, and spare memory holds experts of every layer', () => {
    const plan = selectBackend(withMemory(rtx4090Machine, 768e9), {}, kimiK2);
    expect(plan).toMatchObject({ backend: 'hybrid', ranks: 'native', isa: 'amx' });
    const [dense, ...moe] = plan.devices?.residentExperts ?? [];
    expect([dense, new Set(moe).size, moe.length]).toEqual([0, 1, 60]);
    expect(moe[0]).toBeGreaterThan(4);
    expect(plan.memory).toMatchObject([
      { place: 'GPU 0', fits: true },
      { place: 'memory', fits: true },
    ]);
  });

  it('one more expert a layer would not have fitted', () => {
    const [table] = selectBackend(withMemory(rtx4090Machine, 768e9), {}, kimiK2).memory;
    const oneEach = kimiK2.device.layers.reduce((sum, { expert }) => sum + expert, 0);
    expect((table?.need ?? 0) + oneEach).toBeGreaterThan(table?.available ?? 0);
  });

  it('Kimi K2 stays on the CPU where its experts do not fit in memory, with the shortfall of every alternative', () => {
    const plan = selectBackend(h200Machine, {}, kimiK2);
    expect(plan).toMatchObject({ backend: 'native', devices: null, memory: [{ place: 'memory', fits: false }] });
    expect(line(plan, 'hybrid')).toMatch(/rejected, memory would need 61\d GB and has 128 GB/);
    expect(line(plan, 'cuda')).toMatch(/rejected, GPU 0 would need 6\d\d GB and has 149 GB/);
  });

  it('several GPUs share the layers in ranges, each filled to the same share of its room', () => {
    const plan = selectBackend(twoGpuMachine, {}, kimiK2);
    const [[first, begin, cut] = [], [second, next, end] = []] = layersOf(plan.devices?.parts ?? []);
    expect([first, begin, second, end, cut]).toEqual([0, 0, 1, 61, next]);
    expect(cut).toBeLessThan(30);
    expect(plan.memory.map(({ place, fits }) => [place, fits])).toEqual([
      ['GPU 0', true],
      ['GPU 1', true],
      ['memory', true],
    ]);
  });

  it('a model that one of several GPUs holds is not divided', () => {
    expect(layersOf(selectBackend(twoGpuMachine, {}, small).devices?.parts ?? [])).toEqual([[1, 0, 10]]);
  });

  it('a GPU without the instructions is passed over', () => {
    const plan = selectBackend(oldGpuMachine, {}, small);
    expect(plan.backend).toBe('native');
    expect(line(plan, 'cuda')).toContain('Tesla V100 has 7.0');
  });

  it('a kernel set, float activations and odd widths leave the GPU out', () => {
    expect(selectBackend(smallGpuMachine, { isa: 'avx2' }, small).backend).toBe('native');
    const exact = selectBackend(smallGpuMachine, { exactActivations: true }, small);
    expect([exact.backend, line(exact, 'cuda')]).toEqual(['native', expect.stringContaining('--exact-activations')]);
    const odd = selectBackend(smallGpuMachine, {}, needsOf({ shape: 'tiny-odd', mix: 'f32' }));
    expect(line(odd, 'hybrid')).toContain('the hidden width is 90');
  });

  it('there is one line for every backend', () => {
    for (const machine of [h200Machine, twoGpuMachine, smallGpuMachine, sapphireRapids]) {
      const plan = selectBackend(machine, {}, kimiK2);
      for (const name of ['native', 'wasm', 'hybrid', 'cuda']) {
        expect(plan.reasons.filter((reason) => reason.startsWith(`${name}: `))).toHaveLength(1);
      }
    }
  });
});

describe('--backend', () => {
  it('cuda needs a GPU', () => {
    expect(() => selectBackend(sapphireRapids, { backend: 'cuda' }, small)).toThrow(
      expect.objectContaining({
        code: 'BACKEND_UNAVAILABLE',
        exitCode: 2,
        message: expect.stringContaining('there is no CUDA driver'),
      }),
    );
  });

  it('cuda with a model that is too large tells what to do', () => {
    const plan = selectBackend(rtx4090Machine, { backend: 'cuda' }, kimiK2);
    expect(plan.memory).toMatchObject([{ place: 'GPU 0', fits: false, advice: expect.stringContaining('hybrid') }]);
  });

  it('hybrid with a context that is too long tells which fits', () => {
    const long = (context: number) => needsOf({ shape: 'k2', mix: 'q4_k_m', moeLayers: 60 }, context);
    const roomy = withMemory(rtx4090Machine, 768e9);
    const { advice = '' } = selectBackend(roomy, { backend: 'hybrid' }, long(1e6)).memory[0] ?? {};
    const context = Number(/--context (\d+)/.exec(advice)?.[1]);
    expect(context).toBeGreaterThan(50_000);
    expect(selectBackend(roomy, { backend: 'hybrid' }, long(context)).memory[0]?.fits).toBe(true);
  });

  it.each<[Wishes, string, string]>([
    [{}, 'native', 'amx'],
    [{ isa: 'avx2' }, 'native', 'avx2'],
    [{ isa: 'relaxed' }, 'wasm', 'relaxed'],
    [{ isa: 'simd128' }, 'wasm', 'simd128'],
  ])('hybrid with %o has %s ranks', (wishes, ranks, isa) => {
    const plan = selectBackend(h200Machine, { backend: 'hybrid', ...wishes }, eightLayers);
    expect(plan).toMatchObject({ backend: 'hybrid', ranks, isa });
  });

  it('hybrid holds no copies of experts where it could hold all: the ranks shall work', () => {
    const plan = selectBackend(h200Machine, { backend: 'hybrid' }, eightLayers);
    expect(new Set(plan.devices?.residentExperts)).toEqual(new Set([0]));
  });

  it('cuda has no kernel sets to choose from', () => {
    expect(() => selectBackend(h200Machine, { backend: 'cuda', isa: 'amx' }, small)).toThrow(
      expect.objectContaining({ code: 'ISA_UNAVAILABLE' }),
    );
  });
});

describe('optimize rules', () => {
  const layers = (wish: (layer: number) => Partial<LayerWish>): OptimizeWishes => ({
    layers: Array.from({ length: 61 }, (_, layer) => ({ device: 0, expertsOnDevice: false, ...wish(layer) })),
    notices: ['something is not followed'],
  });

  it('cut the layers, and leave no copies of experts where the CPU shall compute them', () => {
    const plan = selectBackend(
      twoGpuMachine,
      {},
      kimiK2,
      layers((layer) => ({ device: layer < 30 ? 1 : 0 })),
    );
    expect(plan.backend).toBe('hybrid');
    expect(layersOf(plan.devices?.parts ?? [])).toEqual([
      [1, 0, 30],
      [0, 30, 61],
    ]);
    expect(new Set(plan.devices?.residentExperts)).toEqual(new Set([0]));
    expect(plan.reasons).toContain('optimize rules: something is not followed');
    expect(line(plan, 'cuda')).toContain('the optimize rules leave routed experts on the CPU');
  });

  it('put all experts of a layer on its device', () => {
    const plan = selectBackend(
      h200Machine,
      { backend: 'hybrid' },
      kimiK2,
      layers((layer) => ({ expertsOnDevice: layer < 5 })),
    );
    expect(plan.devices?.residentExperts.slice(0, 7)).toEqual([0, 384, 384, 384, 384, 0, 0]);
  });

  it('may ask for the whole model on devices', () => {
    const wishes = { layers: eightLayers.device.layers.map(() => ({ device: 0, expertsOnDevice: true })), notices: [] };
    expect(selectBackend(h200Machine, {}, eightLayers, wishes).backend).toBe('cuda');
  });

  it('may not name a device that is not there', () => {
    expect(() =>
      selectBackend(
        h200Machine,
        {},
        kimiK2,
        layers(() => ({ device: 3 })),
      ),
    ).toThrow(expect.objectContaining({ code: 'OPTION_INVALID', message: expect.stringContaining('cuda:3') }));
  });

  it('are without effect, and that is said, where there is no GPU', () => {
    const plan = selectBackend(
      sapphireRapids,
      {},
      kimiK2,
      layers(() => ({})),
    );
    expect(plan.backend).toBe('native');
    expect(line(plan, 'optimize rules')).toContain('no effect');
  });
});
