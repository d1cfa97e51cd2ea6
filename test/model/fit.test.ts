/** What a model needs in memory, and the advice when it does not get it. */
import { describe, expect, it } from 'vitest';
import { cacheBytesPerToken, modelNeeds } from '../../src/model/fit.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { type SyntheticOptions, syntheticModel } from '../../src/model/synthetic.ts';
import { modelTensors } from '../../src/model/tensors.ts';
import type { WeightMix } from '../../src/model/weight-mix.ts';
import { assertFits, memoryTable, renderMemoryTables } from '../../src/select/memory-table.ts';
import { errorOf } from '../gguf/raw.ts';
import { kimiK2, modelOf, withTensors } from './known-models.ts';

const config = modelConfig(modelOf(kimiK2));
const tensors = modelTensors(withTensors(modelOf(kimiK2), config), config);
const use = { contextTokens: 8192, sequences: 1, batchTokens: 512 };
const tableOf = (changes: Partial<typeof use>, available: number) =>
  memoryTable('memory', modelNeeds(config, tensors, { ...use, ...changes }).cpu, available);
const bytesOf = (table: ReturnType<typeof memoryTable>, name: string) =>
  table.lines.find((line) => line.name === name)?.bytes;

describe('the need of Kimi K2 in BF16', () => {
  const table = tableOf({}, 3e12);

  it('is dominated by routed experts: 60 layers of 384 times 44.04 M parameters', () => {
    const experts = 60 * 384 * 3 * 7168 * 2048;
    const router = 60 * (7168 * 384 + 384);
    expect(bytesOf(table, 'routed experts')).toBe(2 * (experts + router));
  });

  it('has 576 floats per token and layer of cache', () => {
    expect(cacheBytesPerToken(config)).toBe(61 * 576 * 4);
    expect(bytesOf(table, 'KV cache')).toBe(61 * 576 * 4 * 8192);
    expect(bytesOf(tableOf({ sequences: 4 }, 3e12), 'KV cache')).toBe(61 * 576 * 4 * 8192 * 4);
  });

  it('adds up to the total', () => {
    expect(table.need).toBe(table.lines.reduce((sum, line) => sum + line.bytes, 0));
    expect(table.fits).toBe(true);
    expect(() => assertFits([table])).not.toThrow();
  });

  it('is printed with need and have', () => {
    const text = renderMemoryTables([table]);
    expect(text).toMatch(/routed experts +2\.03 TB/);
    expect(text).toMatch(/KV cache +1\.15 GB +141 kB a token x 8192 tokens/);
    expect(text).toMatch(/available +3\.00 TB +it fits/);
  });
});

describe('a model that does not fit', () => {
  const refusal = async (changes: Partial<typeof use>, available: number) => {
    const error = await errorOf(() => assertFits([tableOf(changes, available)]));
    expect([error.code, error.exitCode]).toEqual(['MODEL_DOES_NOT_FIT', 2]);
    expect(error.message).toContain('routed experts');
    return error.message;
  };
  const base = tableOf({ contextTokens: 0 }, 0).need;
  const perToken = cacheBytesPerToken(config);

  it('by its context only is offered the largest context that fits', async () => {
    const message = await refusal({}, base + perToken * 5000);
    expect(message).toContain('Use --context 4864');
    expect(tableOf({ contextTokens: 4864 }, base + perToken * 5000).fits).toBe(true);
  });

  it('by its sequences only is offered fewer', async () => {
    expect(await refusal({ sequences: 100 }, base + perToken * 8192)).toContain('fewer sequences');
  });

  it('by its weights is told by how much, and what size would do', async () => {
    expect(await refusal({}, 64e9)).toMatch(/need about 1\.99 TB more.*at most 60\.8 GB/);
  });
});

describe('on a device', () => {
  const needs = (options: SyntheticOptions, changes: Partial<typeof use> = {}) => {
    const gguf = syntheticModel({ moeLayers: 2, ...options });
    const shape = modelConfig(gguf);
    return modelNeeds(shape, modelTensors(gguf, shape), { ...use, ...changes }).device;
  };
  const expertValues = 3 * 7168 * 2048;

  it('types that are repacked block by block keep their size, others take 12 bits a value', () => {
    const expert = (mix: WeightMix) => (needs({ shape: 'k2', mix }).layers[1]?.expert ?? 0) / expertValues;
    expect(expert('q8_0')).toBe(34 / 32);
    expect(expert('q4_0')).toBe(18 / 32);
    expect(expert('q6_k')).toBe(210 / 256);
    expect(expert('bf16')).toBe(2);
    for (const mix of ['q4_1', 'iq4_xs', 'q2_k'] as const) expect(expert(mix)).toBe(1.5);
  });

  it('dense layers have no experts, and the cache is bf16', () => {
    const { layers, latents } = needs({ shape: 'k2', mix: 'q8_0' });
    expect(layers.map(({ expert }) => expert > 0)).toEqual([false, true, true]);
    expect(latents.bytesPerToken).toBe(2 * 576);
  });

  it('long steps take more: heads as prompts read them, and activations', () => {
    const [short, long] = [64, 4096].map((batchTokens) => needs({ shape: 'k2', mix: 'q8_0' }, { batchTokens }));
    const heads = 64 * 256 * 512 * 2;
    expect((long?.layers[1]?.dense ?? 0) - (short?.layers[1]?.dense ?? 0)).toBe(heads);
    expect(long?.work).toBeGreaterThan(2 * (short?.work ?? 0));
  });

  it('widths that are no multiples of 32 are refused by name', () => {
    expect(needs({ shape: 'tiny-odd', mix: 'f32' }).unsupported).toContain('hidden width is 90');
    expect(needs({ shape: 'tiny', mix: 'f32' }).unsupported).toBeNull();
  });
});
