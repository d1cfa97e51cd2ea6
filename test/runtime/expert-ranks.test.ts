/** What ranks of routed experts must do, native or WASM: a device, played here by Atomics, hands them layers. */
import { createHash } from 'node:crypto';
import { mkdtempSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { ModelConfig } from '../../src/model/config.ts';
import { type LayerTensors, modelTensors } from '../../src/model/tensors.ts';
import { coreFile } from '../../src/runtime/assets.ts';
import { type ExpertRanks, startNativeExperts, startWasmExperts } from '../../src/runtime/expert-ranks.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import { nativeSupport } from '../../src/runtime/native-addon.ts';
import { memoryLimit } from '../../src/runtime/place.ts';
import { type CoreExports, instantiate, sharedMemory } from '../../wasm/core.ts';
import { type HandedLayer, handedLayers, playDevice, wordsOf } from './fake-device.ts';
import {
  openTestModel,
  promptLogits,
  relativeError,
  someTokens,
  syntheticTestModel,
  type TestModel,
} from './models.ts';
import { pools } from './recorded-pools.ts';

vi.mock('piscina', async (original) => (await import('./recorded-pools.ts')).recordPools(original));

const support = nativeSupport();
const kinds = support.available ? (['native', 'wasm'] as const) : (['wasm'] as const);
if (!support.available) it.skip(`native expert ranks: ${support.why}`, () => {});

const open: ExpertRanks[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((ranks) => ranks.close()));
});

async function started(kind: 'native' | 'wasm', model: TestModel, threads: number): Promise<ExpertRanks> {
  const options = {
    config: model.config,
    tensors: modelTensors(model.gguf, model.config),
    files: model.gguf.files.map(({ path }) => path),
    recipes: null,
    isa: null,
    threads,
    exact: false,
    taps: false,
    limits: { batchTokens: 32, batchOutputs: 1, batchSequences: 1, pages: 1, context: 64 },
    onProgress: () => {},
  };
  const ranks =
    kind === 'native'
      ? await startNativeExperts({ ...options, cpus: [] })
      : await startWasmExperts({ ...options, core: coreFile('relaxed'), shardBytes: memoryLimit });
  open.push(ranks);
  return ranks;
}

/** Plays the device for one step; the sums of every layer. */
async function handOver(ranks: ExpertRanks, model: TestModel, layers: readonly HandedLayer[]): Promise<Float32Array[]> {
  const step = ranks.run((layers[0] as HandedLayer).h.length / model.config.hidden);
  const sums = await playDevice(ranks, layers);
  expect(await step).toBe(true);
  return sums as Float32Array[];
}

function hashOf(sums: readonly Float32Array[]): string {
  const hash = createHash('sha256');
  for (const sum of sums) hash.update(new Uint8Array(sum.buffer));
  return hash.digest('hex');
}

/** The same sums in double precision, of a model with float32 weights. */
function expected({ gguf, config }: TestModel, layers: readonly HandedLayer[]): Float64Array[] {
  const tensors = modelTensors(gguf, config);
  const file = openSync((gguf.files[0] as { path: string }).path, 'r');
  return layers.map(({ h, chosen, weight }, index) => {
    const layer = tensors.layers[config.denseLayers + index];
    const matrix = (slot: 'ffn_gate_exps' | 'ffn_up_exps' | 'ffn_down_exps') => {
      const tensor = layer?.[slot] as { offset: number; bytes: number };
      const bytes = new Uint8Array(tensor.bytes);
      readSync(file, bytes, 0, tensor.bytes, tensor.offset);
      return new Float32Array(bytes.buffer);
    };
    const [gate, up, down] = [matrix('ffn_gate_exps'), matrix('ffn_up_exps'), matrix('ffn_down_exps')];
    const { hidden, expertWidth, expertsUsed } = config;
    const dot = (w: Float32Array, row: number, x: ArrayLike<number>, at: number, cols: number) => {
      let sum = 0;
      for (let i = 0; i < cols; i++) sum += (w[row * cols + i] as number) * (x[at + i] as number);
      return sum;
    };
    const out = new Float64Array(h.length);
    chosen.forEach((expert, s) => {
      if (expert < 0) return;
      const token = Math.floor(s / expertsUsed);
      const mid = Float64Array.from({ length: expertWidth }, (_, row) => {
        const g = dot(gate, expert * expertWidth + row, h, token * hidden, hidden);
        return (g / (1 + Math.exp(-g))) * dot(up, expert * expertWidth + row, h, token * hidden, hidden);
      });
      for (let row = 0; row < hidden; row++) {
        const at = token * hidden + row;
        out[at] = (out[at] as number) + (weight[s] as number) * dot(down, expert * hidden + row, mid, 0, expertWidth);
      }
    });
    return out;
  });
}

describe.each(kinds)('expert ranks: %s', (kind) => {
  it('compute the routed experts of every layer that is handed over', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'f32' });
    const ranks = await started(kind, model, 2);
    for (const [tokens, leftOut] of [
      [1, 0],
      [5, 3],
      [20, 2],
    ] as const) {
      const layers = handedLayers(model, tokens, leftOut);
      const sums = await handOver(ranks, model, layers);
      expect(relativeError(sums, expected(model, layers))).toBeLessThan(1e-5);
    }
  });

  it('write zeros where every expert is left out', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });
    const ranks = await started(kind, model, 2);
    for (const tokens of [1, 20]) {
      const sums = await handOver(ranks, model, handedLayers(model, tokens, 1));
      expect(sums.every((sum) => sum.every((value) => value === 0))).toBe(true);
    }
  });

  it('leave the step when it is aborted, and serve the next one', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });
    const ranks = await started(kind, model, 3);
    const layers = handedLayers(model, 2);
    const before = hashOf(await handOver(ranks, model, layers));
    const step = ranks.run(2);
    ranks.abort();
    expect(await step).toBe(false);
    expect(hashOf(await handOver(ranks, model, layers))).toBe(before);
  });

  it('leave the step when they are closed', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });
    const ranks = await started(kind, model, 2);
    const step = ranks.run(1).catch(({ code }) => code === 'ENGINE_FAILED' && 'closed');
    await ranks.close();
    expect([false, 'closed']).toContain(await step);
    await expect(ranks.run(1)).rejects.toMatchObject({ code: 'ENGINE_FAILED' });
  });

  it('refuse more tokens than the exchange has room for', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
    const ranks = await started(kind, model, 1);
    await expect(ranks.run(33)).rejects.toThrow('refused');
  });

  it('show where every expert lies', async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });
    const ranks = await started(kind, model, 3);
    const tensors = modelTensors(model.gguf, model.config);
    const file = openSync((model.gguf.files[0] as { path: string }).path, 'r');
    const { config } = model;
    expect(ranks.parts().length).toBe(3 * 3 * (config.layers - config.denseLayers));
    for (const { slot, layer, rowBegin, rows, memory, offsets } of ranks.parts()) {
      const tensor = tensors.layers[layer]?.[slot as 'ffn_up_exps'] as { offset: number; bytes: number };
      const height = slot === 'ffn_down_exps' ? config.hidden : config.expertWidth;
      const rowBytes = tensor.bytes / (config.experts * height);
      const expert = config.experts - 1;
      const wanted = new Uint8Array(rows * rowBytes);
      readSync(file, wanted, 0, wanted.length, tensor.offset + (expert * height + rowBegin) * rowBytes);
      const at = offsets[expert] as number;
      expect(Buffer.compare(wanted, memory.subarray(at, at + wanted.length))).toBe(0);
    }
  });
});

describe('expert ranks of both kinds', () => {
  it.each(['q4_k_m', 'q8_0', 'bf16'] as const)('give the same bits for 1 to 4 ranks (%s)', async (mix) => {
    const model = await syntheticTestModel({ shape: 'tiny', mix });
    const bits = new Map<number, Set<string>>();
    for (const kind of kinds) {
      for (const threads of [1, 2, 3, 4]) {
        const ranks = await started(kind, model, threads);
        for (const tokens of [1, 3, 9]) {
          const hash = hashOf(await handOver(ranks, model, handedLayers(model, tokens, 4)));
          bits.set(tokens, (bits.get(tokens) ?? new Set()).add(hash));
        }
        await ranks.close();
      }
    }
    expect([...bits.values()].map(({ size }) => size)).toEqual([1, 1, 1]);
  });
});

it('expert ranks in WebAssembly fail the step and tell the device when a worker is killed', async () => {
  const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
  const ranks = await started('wasm', model, 2);
  const refused = expect(ranks.run(1)).rejects.toMatchObject({
    code: 'ENGINE_FAILED',
    message: expect.stringContaining('rank stopped'),
  });
  await pools.at(-1)?.threads[1]?.terminate();
  await refused;
  expect(Atomics.load(wordsOf(ranks), ranks.offsets.failed / 4)).toBe(1);
  await expect(ranks.run(1)).rejects.toMatchObject({ code: 'ENGINE_FAILED' });
});

/** The model with attention and shared experts that add nothing, so that what a MoE layer gets and gives can be told from taps. */
async function onlyRouted(model: TestModel): Promise<TestModel> {
  const [source] = model.gguf.files;
  const path = join(mkdtempSync(join(tmpdir(), 'perigee-routed-')), 'model.gguf');
  const bytes = readFileSync(source?.path as string);
  for (const layer of modelTensors(model.gguf, model.config).layers) {
    for (const tensor of [layer.attn_output, layer.ffn_down_shexp])
      if (tensor) bytes.fill(0, tensor.offset, tensor.offset + tensor.bytes);
  }
  writeFileSync(path, bytes);
  return openTestModel(path);
}

/** RMSNorm of each row by the core's own kernel. */
async function normed(x: Float32Array, weight: Float32Array, eps: number): Promise<Float32Array> {
  const memory = sharedMemory(4 << 20);
  const core = instantiate(await WebAssembly.compile(readFileSync(coreFile('simd128'))), memory) as CoreExports & {
    probe_rms_norm(kernels: number, x: number, weight: number, eps: number, n: number, y: number): void;
  };
  const [at, row] = [2 << 20, weight.byteLength];
  const floats = (offset: number) => new Float32Array(memory.buffer, at + offset, weight.length);
  floats(row).set(weight);
  const y = new Float32Array(x.length);
  for (let begin = 0; begin < x.length; begin += weight.length) {
    floats(0).set(x.subarray(begin, begin + weight.length));
    core.probe_rms_norm(core.isa_kernels(0), at, at + row, eps, weight.length, at + 2 * row);
    y.set(floats(2 * row), begin);
  }
  return y;
}

/** Weights of the chosen experts as engine/router.cc computes them. */
function routedWeights(config: ModelConfig, scores: Float32Array, chosen: Int32Array): Float32Array {
  const weights = Float32Array.from(
    chosen,
    (expert, s) => scores[Math.floor(s / config.expertsUsed) * config.experts + expert] as number,
  );
  for (let begin = 0; begin < weights.length; begin += config.expertsUsed) {
    const own = weights.subarray(begin, begin + config.expertsUsed);
    const divisor = Math.fround(own.reduce((sum, weight) => Math.fround(sum + weight), 0) + Math.fround(1e-20));
    own.forEach((weight, k) => {
      const share = config.normalizeWeights ? Math.fround(weight / divisor) : weight;
      own[k] = Math.fround(share * Math.fround(config.weightScale));
    });
  }
  return weights;
}

it.each([1, 20])('expert ranks give the bits that a whole model gives %i tokens', async (tokens) => {
  const model = await onlyRouted(await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' }));
  const { config } = model;
  const runtime = await loadRuntime({ ...model, backend: 'wasm', threads: 2, taps: true });
  await promptLogits(runtime, someTokens(tokens, config.vocabulary));
  const { layers: tensors } = modelTensors(model.gguf, config);
  const file = readFileSync(model.gguf.files[0]?.path as string);
  const layers: HandedLayer[] = [];
  const given: Float32Array[] = [];
  for (let layer = config.denseLayers; layer < config.layers; layer++) {
    const x = layer === 0 ? runtime.tap('embedding', 0) : runtime.tap('residual', layer - 1);
    const { offset, bytes } = (tensors[layer] as LayerTensors).ffn_norm;
    const norm = new Float32Array(Uint8Array.from(file.subarray(offset, offset + bytes)).buffer);
    const chosen = runtime.tap('router-choices', layer) as Int32Array;
    const scores = runtime.tap('router-scores', layer) as Float32Array;
    const h = await normed(x as Float32Array, norm, config.rmsEps);
    layers.push({ h, chosen, weight: routedWeights(config, scores, chosen) });
    given.push(runtime.tap('feed-forward', layer) as Float32Array);
  }
  await runtime.close();
  for (const kind of kinds) {
    const sums = await handOver(await started(kind, model, 2), model, layers);
    // The shared expert added zeros, which turn -0 into 0.
    expect(hashOf(sums.map((sum) => sum.map((value) => value + 0)))).toBe(hashOf(given));
  }
});
