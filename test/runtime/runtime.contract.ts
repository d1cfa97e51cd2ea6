/** What every backend must do: CPUs bit for bit, GPUs within bands. A backend's own test file calls this with the ways it can be configured. */
import { afterEach, describe, expect, it } from 'vitest';
import type { SyntheticOptions } from '../../src/model/synthetic.ts';
import type { Runtime } from '../../src/runtime/runtime.ts';
import { Oracle } from '../oracle/oracle.ts';
import {
  batchLogits,
  bitsOf,
  meanDivergence,
  promptLogits,
  relativeError,
  someTokens,
  syntheticTestModel,
  type TestModel,
} from './models.ts';

export interface LoadWishes {
  readonly threads: number;
  readonly isa: string;
  readonly exact?: boolean | 'bf16';
  readonly sequences?: number;
}

export interface Backend {
  readonly name: string;
  /** Kernel tables to compare; the first is the one other tests use. */
  readonly isas: readonly string[];
  /** Equal logits: to the last bit, or within the band of GPUs, which have no float activations either. */
  readonly equal: 'bits' | 'band';
  load(model: TestModel, wishes: LoadWishes): Promise<Runtime>;
}

/** Members of the family that differ in arithmetic; all float32, so that the oracle can follow. */
const relatives: Record<string, SyntheticOptions> = {
  'Kimi K2': { shape: 'tiny', mix: 'f32' },
  'a plain query projection': { shape: 'tiny', mix: 'f32', plainQuery: true },
  'joined kv_b tensors': { shape: 'tiny', mix: 'f32', joinedKvB: true },
  'grouped experts': { shape: 'tiny', mix: 'f32', groups: true },
  'a softmax router': { shape: 'tiny', mix: 'f32', softmax: true },
  'a softmax router with groups': { shape: 'tiny', mix: 'f32', softmax: true, groups: true },
  'odd dimensions and 384 experts': { shape: 'tiny-odd', mix: 'f32' },
  'odd dimensions, grouped': { shape: 'tiny-odd', mix: 'f32', groups: true, plainQuery: true },
  'no YaRN': { shape: 'tiny', mix: 'f32', noYarn: true },
};

/** Every weight type. */
export const everyMix = [
  'f32',
  'f16',
  'bf16',
  'q8_0',
  'q4_0',
  'q4_1',
  'q5_0',
  'q5_1',
  'q2_k',
  'q3_k',
  'q4_k_m',
  'q5_k',
  'q6_k',
  'iq4_nl',
  'iq4_xs',
] as const;

/** Mean divergence of next-token distributions between a GPU and a CPU, or a GPU and itself. */
const band = 1e-3;

export function describeRuntime({ name, isas, equal, load }: Backend): void {
  const exact = equal === 'bits';
  const expectEqual = (all: readonly (readonly Float32Array[])[]): void => {
    if (exact) expect(new Set(all.map(bitsOf)).size).toBe(1);
    else for (const rows of all) expect(meanDivergence(rows, all[0] as Float32Array[])).toBeLessThan(band);
  };
  const isa = isas[0] as string;
  const open: Runtime[] = [];
  const loaded = async (model: TestModel, wishes: Partial<LoadWishes> = {}): Promise<Runtime> => {
    const runtime = await load(model, { threads: 2, isa, ...wishes });
    open.push(runtime);
    return runtime;
  };
  afterEach(async () => {
    await Promise.all(open.splice(0).map((runtime) => runtime.close()));
  });

  describe(`${name}: the forward pass`, () => {
    it.each(Object.entries(relatives))('agrees with the float64 oracle for %s', async (_, options) => {
      const model = await syntheticTestModel(options);
      const tokens = someTokens(70, model.config.vocabulary);
      const rows = await promptLogits(await loaded(model, { exact }), tokens);
      const oracle = new Oracle(model.gguf, model.config).logits(tokens);
      if (exact) expect(relativeError(rows, oracle)).toBeLessThan(1e-4);
      else expect(meanDivergence(rows, oracle)).toBeLessThan(band);
    });
  });

  describe(`${name}: equal ${equal === 'bits' ? 'bits' : 'logits within the band'}`, () => {
    const options: SyntheticOptions = { shape: 'tiny', mix: 'q4_k_m' };

    it('for 1, 2, 3, 4 and 5 ranks', async () => {
      const model = await syntheticTestModel(options);
      const tokens = someTokens(90, model.config.vocabulary);
      const all = [];
      for (const threads of [1, 2, 3, 4, 5]) all.push(await promptLogits(await loaded(model, { threads }), tokens));
      expectEqual(all);
    });

    it('however a prompt is cut into steps', async () => {
      const model = await syntheticTestModel(options);
      const tokens = someTokens(150, model.config.vocabulary);
      const runtime = await loaded(model);
      const all = [];
      for (const cuts of [[150], [1], [64], [7, 1, 33], [149, 1]]) all.push(await promptLogits(runtime, tokens, cuts));
      expectEqual(all);
    });

    it('alone, after another prompt, and beside another in one step', async () => {
      const model = await syntheticTestModel(options);
      const [first, second] = [someTokens(40, model.config.vocabulary, 3), someTokens(75, model.config.vocabulary, 4)];
      const runtime = await loaded(model, { sequences: 2 });
      const alone = await promptLogits(runtime, second);
      const firstAlone = await promptLogits(runtime, first);
      expectEqual([alone, await promptLogits(runtime, second)]);
      const [besideFirst = [], beside = []] = await batchLogits(runtime, [first, second]);
      expectEqual([alone, beside]);
      expectEqual([firstAlone, besideFirst]);
    });

    it.each(everyMix)('in every kernel table for %s weights', async (mix) => {
      const model = await syntheticTestModel({ shape: 'tiny', mix });
      const tokens = someTokens(37, model.config.vocabulary);
      for (const floats of exact ? ([false, true, 'bf16'] as const) : [false]) {
        const all = [];
        for (const table of isas) {
          const runtime = await loaded(model, { isa: table, exact: floats });
          all.push([
            ...(await promptLogits(runtime, tokens)),
            ...(await promptLogits(runtime, tokens.slice(0, 6), [1])),
          ]);
        }
        expectEqual(all);
      }
    });

    it.each([
      ['Kimi head dimensions', { shape: 'tiny-kimi', mix: 'q4_k_m' }],
      ['joined kv_b', { shape: 'tiny', mix: 'q4_k_m', joinedKvB: true }],
      ['odd dimensions', { shape: 'tiny-odd', mix: 'f16' }],
    ] as const)('in every kernel table for %s', async (_, other) => {
      const model = await syntheticTestModel(other);
      const tokens = someTokens(80, model.config.vocabulary);
      const all = [];
      for (const table of isas) all.push(await promptLogits(await loaded(model, { isa: table, threads: 3 }), tokens));
      expectEqual(all);
    });
  });

  it.runIf(exact)(`${name}: activations in bf16 change a little`, async () => {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'f32', moeLayers: 0 });
    const tokens = someTokens(48, model.config.vocabulary);
    const [floats = [], rounded = []] = [
      await promptLogits(await loaded(model, { exact: true }), tokens),
      await promptLogits(await loaded(model, { exact: 'bf16' }), tokens),
    ];
    expect(relativeError(rounded, floats)).toBeLessThan(0.02);
    expect(relativeError(rounded, floats)).toBeGreaterThan(1e-4);
  });

  describe.runIf(exact)(`${name}: quantized weights`, () => {
    // Dense layers only: a random router has so many near-ties that rounding turns choices over.
    it.each(['q8_0', 'q4_0', 'q5_k', 'q4_k_m', 'q6_k'] as const)(
      'give nearly the logits of float activations (%s)',
      async (mix) => {
        const model = await syntheticTestModel({ shape: 'tiny', mix, moeLayers: 0 });
        const tokens = someTokens(48, model.config.vocabulary);
        const rows = await promptLogits(await loaded(model), tokens);
        const exact = await promptLogits(await loaded(model, { exact: true }), tokens);
        expect(relativeError(rows, exact)).toBeLessThan(0.04);
        expect(relativeError(rows, exact)).toBeGreaterThan(0);
      },
    );
  });

  describe(`${name}: bad steps`, () => {
    it.each([
      ['a token beyond the vocabulary', { tokens: [100_000] }],
      ['a negative token', { tokens: [-1] }],
      ['a position beyond the context', { positions: [1 << 20] }],
      ['a page that does not exist', { pageTables: [[9_999]] }],
      ['an output that is no token', { outputs: [1] }],
      ['more tokens than a step may have', { tokens: new Array(100_000).fill(1) }],
      ['no token at all', { tokens: [], positions: [], outputs: [] }],
    ])('are refused and leave the runtime usable: %s', async (_, change) => {
      const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_0' });
      const runtime = await loaded(model);
      const bad = { tokens: [1], positions: [0], outputs: [0], pageTables: [[0]], ...change };
      const step = runtime.step({
        tokens: Int32Array.from(bad.tokens),
        positions: Int32Array.from(bad.positions),
        sequences: new Int32Array(bad.tokens.length),
        pageTables: bad.pageTables.map((table) => Int32Array.from(table)),
        outputs: Int32Array.from(bad.outputs),
      });
      await expect(step).rejects.toThrow('refused');
      expect((await promptLogits(runtime, [1, 2, 3])).length).toBe(3);
    });
  });
}
