/** Random models: complete, the same every time, and cut into pieces without a seam. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openGguf } from '../../src/gguf/open.ts';
import { blockShapes, type GgmlTypeName } from '../../src/gguf/types.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { type SyntheticOptions, syntheticModel, writeSynthetic } from '../../src/model/synthetic.ts';
import { fillSynthetic } from '../../src/model/synthetic-blocks.ts';
import { modelTensors } from '../../src/model/tensors.ts';
import { weightMixes } from '../../src/model/weight-mix.ts';
import { tokenizerFromGguf } from '../../src/tokenizer/gguf.ts';

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'perigee-synthetic-'));
});
afterAll(() => rm(folder, { recursive: true }));

const variants: [string, SyntheticOptions][] = [
  ['tiny', { shape: 'tiny', mix: 'f32' }],
  ['joined kv_b', { shape: 'tiny', mix: 'q8_0', joinedKvB: true }],
  ['plain query', { shape: 'tiny', mix: 'q4_k_m', plainQuery: true }],
  ['groups', { shape: 'tiny-kimi', mix: 'q6_k', groups: true }],
  ['softmax', { shape: 'tiny', mix: 'q3_k', softmax: true }],
  ['no YaRN', { shape: 'tiny', mix: 'iq4_xs', noYarn: true }],
];

it.each(variants)('%s: a file holds what the description says, byte for byte', async (name, options) => {
  const path = join(folder, `${name}.gguf`);
  await writeSynthetic(path, options);
  const [model, opened, file] = [syntheticModel(options), await openGguf(path), await readFile(path)];
  const config = modelConfig(opened);
  expect({ ...config, name: '' }).toEqual({ ...modelConfig(model), name: '' });
  expect(modelTensors(opened, config).layers).toHaveLength(config.layers);
  expect(tokenizerFromGguf(opened).vocabularySize).toBe(config.vocabulary);
  for (const tensor of opened.tensors.values()) {
    const recipe = model.recipes.get(tensor.name);
    if (!recipe) throw new Error(`no recipe for ${tensor.name}`);
    const expected = new Uint8Array(tensor.bytes);
    fillSynthetic(recipe, 0, expected);
    expect(Buffer.compare(file.subarray(tensor.offset, tensor.offset + tensor.bytes), expected), tensor.name).toBe(0);
  }
});

describe('options', () => {
  it('are what the config says', () => {
    const config = (options: Partial<SyntheticOptions>) =>
      modelConfig(syntheticModel({ shape: 'tiny', mix: 'f32', ...options }));
    expect(config({ groups: true })).toMatchObject({ expertGroups: 4, expertGroupsUsed: 2 });
    expect(config({ softmax: true })).toMatchObject({ gating: 'softmax', normalizeWeights: false, weightScale: 1 });
    expect(config({ plainQuery: true }).qRank).toBe(0);
    expect(config({ noYarn: true }).yarn).toBeNull();
    expect(config({ shape: 'k2', moeLayers: 1 })).toMatchObject({
      layers: 2,
      denseLayers: 1,
      hidden: 7168,
      heads: 64,
      experts: 384,
    });
    expect(config({ shape: 'moonlight' })).toMatchObject({ layers: 27, qRank: 0, sharedWidth: 2816, yarn: null });
  });

  it('with a large vocabulary name no token twice', () => {
    const tokens = syntheticModel({ shape: 'moonlight', mix: 'q4_k_m' }).metadata.get('tokenizer.ggml.tokens');
    expect(new Set(tokens as string[]).size).toBe(163_840);
  });

  it('choose types as llama.cpp does', () => {
    const { tensors } = syntheticModel({ shape: 'k2', mix: 'q4_k_m', moeLayers: 60 });
    const type = (name: string) => tensors.get(`${name}.weight`)?.type;
    expect([type('token_embd'), type('output'), type('output_norm')]).toEqual(['Q4_K', 'Q6_K', 'F32']);
    expect([type('blk.5.attn_k_b'), type('blk.5.attn_v_b'), type('blk.5.ffn_gate_inp')]).toEqual([
      'Q5_0',
      'Q4_K',
      'F32',
    ]);
    // Layers 0 to 6, every third from 9, and 53 to 60.
    const more = Array.from({ length: 61 }, (_, layer) => layer).filter(
      (layer) => type(`blk.${layer}.ffn_down_exps`) === 'Q6_K' || (layer === 0 && type('blk.0.ffn_down') === 'Q6_K'),
    );
    expect(more).toEqual([
      0, 1, 2, 3, 4, 5, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 48, 51, 53, 54, 55, 56, 57, 58, 59, 60,
    ]);
  });
});

describe('blocks', () => {
  const types = Object.keys(blockShapes) as GgmlTypeName[];

  it.each(types)('%s: a piece equals the same bytes of the whole', (type) => {
    const recipe = { type, mean: 0, sigma: 0.1, seed: 7 };
    const { bytes } = blockShapes[type];
    const whole = new Uint8Array(bytes * Math.ceil(3_000_000 / bytes));
    fillSynthetic(recipe, 0, whole);
    for (const [from, count] of [
      [0, 1],
      [1, 3],
      [Math.floor((1 << 20) / bytes) - 1, 5],
      [Math.floor(2_500_000 / bytes), 200],
    ] as const) {
      const piece = new Uint8Array(bytes * count);
      fillSynthetic(recipe, from * bytes, piece);
      expect(Buffer.compare(piece, whole.subarray(from * bytes, (from + count) * bytes))).toBe(0);
    }
  });

  it('differ between seeds', () => {
    const [a, b] = [1, 2].map((seed) => {
      const bytes = new Uint8Array(144 * 1000);
      fillSynthetic({ type: 'Q4_K', mean: 0, sigma: 0.1, seed }, 0, bytes);
      return bytes;
    });
    expect(Buffer.compare(a as Uint8Array, b as Uint8Array)).not.toBe(0);
  });

  it('of Q8_0 have the mean and spread asked for, and no -128', () => {
    const bytes = new Uint8Array(34 * 20_000);
    fillSynthetic({ type: 'Q8_0', mean: 0, sigma: 0.25, seed: 3 }, 0, bytes);
    const view = new DataView(bytes.buffer);
    let [sum, squares, count, least] = [0, 0, 0, 0];
    for (let block = 0; block < bytes.length; block += 34) {
      const half = view.getUint16(block, true);
      const d = 2 ** ((half >> 10) - 15) * (1 + (half & 1023) / 1024);
      for (let i = 2; i < 34; i++) {
        const q = view.getInt8(block + i);
        least = Math.min(least, q);
        sum += d * q;
        squares += (d * q) ** 2;
        count += 1;
      }
    }
    expect(sum / count).toBeCloseTo(0, 2);
    expect(Math.sqrt(squares / count)).toBeCloseTo(0.25, 2);
    expect(least).toBe(-127);
  });

  it('exist for every mix', () => {
    for (const mix of weightMixes) expect(syntheticModel({ shape: 'tiny', mix }).recipes.size).toBeGreaterThan(60);
  });
});
