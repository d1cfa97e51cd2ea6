/** Hybrid steps without a GPU: real ranks, real weights, and a device that hands over made-up activations. */
import { copyFileSync, mkdtempSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { matrixSlots } from '../../src/model/plan.ts';
import { modelTensors } from '../../src/model/tensors.ts';
import { coreFile } from '../../src/runtime/assets.ts';
import { ExpertsBy } from '../../src/runtime/cuda-addon.ts';
import { startCuda } from '../../src/runtime/cuda-runtime.ts';
import { type ExpertRanks, startNativeExperts, startWasmExperts } from '../../src/runtime/expert-ranks.ts';
import { startHybrid } from '../../src/runtime/hybrid-runtime.ts';
import { nativeSupport } from '../../src/runtime/native-addon.ts';
import { memoryLimit } from '../../src/runtime/place.ts';
import type { Runtime, StepBatch } from '../../src/runtime/runtime.ts';
import { type FakeDevice, fakeDevice, handedLayers, logitsFrom, playDevice } from './fake-device.ts';
import { bitsOf, openTestModel, syntheticTestModel, type TestModel } from './models.ts';
import { pools } from './recorded-pools.ts';

vi.mock('piscina', async (original) => (await import('./recorded-pools.ts')).recordPools(original));

const support = nativeSupport();
const kinds = support.available ? (['native', 'wasm'] as const) : (['wasm'] as const);
type Kind = (typeof kinds)[number];

const open: { close(): Promise<void> }[] = [];
beforeEach(() => {
  vi.stubEnv('XDG_CACHE_HOME', mkdtempSync(join(tmpdir(), 'perigee-cache-')));
});
afterEach(async () => {
  await Promise.all(open.splice(0).map((opened) => opened.close()));
  vi.unstubAllEnvs();
});

const optionsFor = ({ gguf, config }: TestModel, resident = 0) => ({
  config,
  tensors: modelTensors(gguf, config),
  files: gguf.files.map(({ path }) => path),
  recipes: null,
  isa: null,
  threads: 2,
  exact: false,
  taps: false,
  profile: false,
  limits: { batchTokens: 300, batchOutputs: 300, batchSequences: 1, pages: 8, context: 512 },
  placement: {
    parts: [{ device: 0, firstLayer: 0, end: config.layers }],
    residentExperts: Array.from({ length: config.layers }, (_, layer) => (layer < config.denseLayers ? 0 : resident)),
  },
  onProgress: () => {},
});

function ranksOf(kind: Kind, options: ReturnType<typeof optionsFor>): Promise<ExpertRanks> {
  if (kind === 'native') return startNativeExperts({ ...options, cpus: [] });
  return startWasmExperts({ ...options, core: coreFile('simd128'), shardBytes: memoryLimit });
}

async function hybrid(model: TestModel, device: FakeDevice, kind: Kind, resident = 0): Promise<Runtime> {
  const options = optionsFor(model, resident);
  const runtime = await startHybrid({ ...options, startRanks: () => ranksOf(kind, options) }, device);
  open.push(runtime);
  return runtime;
}

const batchOf = (tokens: number[]): StepBatch => ({
  tokens: Int32Array.from(tokens),
  positions: Int32Array.from(tokens.keys()),
  sequences: new Int32Array(tokens.length),
  pageTables: [Int32Array.from({ length: 8 }, (_, page) => page)],
  outputs: Int32Array.from(tokens.keys()),
});
const model = () => syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });

describe.each(kinds)('hybrid with %s ranks', (kind) => {
  it('adds what the ranks compute', async () => {
    const tiny = await model();
    const runtime = await hybrid(tiny, fakeDevice(tiny), kind);
    const ranks = await ranksOf(kind, optionsFor(tiny));
    open.push(ranks);
    for (const tokens of [1, 12]) {
      const layers = handedLayers(tiny, tokens);
      const step = ranks.run(tokens);
      const sums = (await playDevice(ranks, layers)) as Float32Array[];
      await step;
      const logits = await runtime.step(batchOf(new Array(tokens).fill(1)));
      expect(bitsOf([logits])).toBe(bitsOf([logitsFrom(sums, tiny.config)]));
    }
  });

  it('rejects the step and all later ones when the device fails, and says by what', async () => {
    const tiny = await model();
    const device = fakeDevice(tiny);
    const runtime = await hybrid(tiny, device, kind);
    device.failure = 'cudaGraphLaunch failed: out of memory';
    const named = { code: 'ENGINE_FAILED', message: expect.stringContaining('cudaGraphLaunch') };
    await expect(runtime.step(batchOf([1, 2]))).rejects.toMatchObject(named);
    device.failure = '';
    await expect(runtime.step(batchOf([1]))).rejects.toMatchObject(named);
  });

  it('refuses a bad step and runs the next one', async () => {
    const tiny = await model();
    const runtime = await hybrid(tiny, fakeDevice(tiny), kind);
    await expect(runtime.step(batchOf([-1]))).rejects.toThrow('refused');
    await expect(runtime.step(batchOf(new Array(301).fill(1)))).rejects.toThrow('refused');
    expect((await runtime.step(batchOf([1]))).length).toBe(tiny.config.vocabulary);
  });

  it('can be closed while a step waits', async () => {
    const tiny = await model();
    const runtime = await hybrid(tiny, fakeDevice(tiny), kind);
    const step = runtime.step(batchOf(new Array(200).fill(1))).catch((error: unknown) => error);
    await runtime.close();
    await step;
    await expect(runtime.step(batchOf([1]))).rejects.toMatchObject({ code: 'ENGINE_FAILED' });
  });
});

describe('hybrid', () => {
  it('puts everything but routed experts on the device, and shows it every expert', async () => {
    const tiny = await model();
    const device = fakeDevice(tiny);
    await hybrid(tiny, device, 'wasm');
    const { config } = tiny;
    expect(device.uploads.some(({ slot }) => (matrixSlots[slot] as string).endsWith('_exps'))).toBe(false);
    expect(device.uploads.filter(({ slot }) => matrixSlots[slot] === 'attn_k_b').length).toBe(
      config.layers * config.heads,
    );
    const down = device.attached.filter(({ slot }) => matrixSlots[slot] === 'ffn_down_exps');
    expect(down.reduce((rows, part) => rows + part.rows, 0)).toBe((config.layers - config.denseLayers) * config.hidden);
  });

  it('names the rank that died, and the device learns of it', async () => {
    const tiny = await model();
    const runtime = await hybrid(tiny, fakeDevice(tiny), 'wasm');
    await pools.at(-1)?.threads[1]?.terminate();
    const named = { code: 'ENGINE_FAILED', message: expect.stringContaining('rank stopped') };
    await expect(runtime.step(batchOf([1]))).rejects.toMatchObject(named);
    await expect(runtime.step(batchOf([1]))).rejects.toMatchObject(named);
  });

  it('brings experts to the device for steps above the measured break-even', async () => {
    const tiny = await model();
    const fast = fakeDevice(tiny);
    fast.gbPerSecond = 1e12;
    const runtime = await hybrid(tiny, fast, 'wasm');
    await runtime.step(batchOf(new Array(300).fill(1)));
    expect(fast.stepsBy).toEqual([ExpertsBy.Streaming]);
    expect(runtime.notes?.[0]).toMatch(/steps of \d+ tokens and more/);
    const slow = fakeDevice(tiny);
    await (await hybrid(tiny, slow, 'wasm')).step(batchOf(new Array(300).fill(1)));
    expect(slow.stepsBy).toEqual([ExpertsBy.Ranks]);
  });

  it('keeps the experts that were chosen most on the device, in later runs too', async () => {
    const tiny = await model();
    const { config } = tiny;
    const layer = config.denseLayers;
    const device = fakeDevice(tiny);
    const runtime = await hybrid(tiny, device, 'wasm', 2);
    const started = 2 * (config.layers - layer);
    expect(device.placed.length).toBe(started);
    device.expertCounts[layer * config.experts + 7] = 500;
    for (let step = 0; step < 64; step++) await runtime.step(batchOf([1]));
    await runtime.close();
    expect(device.placed.slice(started)).toEqual([[layer, 7, 0]]);
    const later = fakeDevice(tiny);
    await hybrid(tiny, later, 'wasm', 2);
    expect(later.placed).toContainEqual([layer, 7, 0]);
  });
});

describe.skipIf(!support.available)('experts in a mapped file that shrinks', () => {
  it('fail the step that brings them to the device, and the process lives on', async () => {
    const { gguf } = await model();
    const path = join(mkdtempSync(join(tmpdir(), 'perigee-shrink-')), 'model.gguf');
    copyFileSync(gguf.files[0]?.path as string, path);
    const copy = await openTestModel(path);
    const device = fakeDevice(copy);
    device.gbPerSecond = 1e12;
    const runtime = await hybrid(copy, device, 'native');
    const streamed = batchOf(new Array(300).fill(1));
    await runtime.step(streamed);
    const before = device.streamedSum;
    truncateSync(path, 8192);
    const shrank = { code: 'MODEL_FILE_SHRANK', message: expect.stringContaining(path) };
    await expect(runtime.step(streamed)).rejects.toMatchObject(shrank);
    expect(device.streamedSum).toBeLessThan(before);
    await expect(runtime.step(batchOf([1]))).rejects.toMatchObject(shrank);
  });
});

describe('a model on the device alone', () => {
  it('is uploaded whole, the key halves of old joined tensors as the engine wants them', async () => {
    const joined = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m', joinedKvB: true });
    const device = fakeDevice(joined);
    const options = optionsFor(joined, joined.config.experts);
    const seen: number[] = [];
    const runtime = await startCuda({ ...options, onProgress: ({ bytesRead }) => seen.push(bytesRead) }, device);
    open.push(runtime);
    const { config } = joined;
    const of = (name: string) => device.uploads.filter(({ slot }) => matrixSlots[slot] === name);
    expect(of('ffn_up_exps').length).toBe((config.layers - config.denseLayers) * config.experts);
    expect(of('attn_k_b').map(({ bytes }) => bytes)).toEqual(
      new Array(config.layers * config.heads).fill(config.kvRank * config.nopeDim * 4),
    );
    expect(of('output').length).toBe(1);
    expect(seen.at(-1)).toBe(runtime.weightBytes);
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
  });
});
