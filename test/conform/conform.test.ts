import { describe, expect, it } from 'vitest';
import { conform } from '../../src/conform/conform.ts';
import { notFinite, tapRows, verdict } from '../../src/conform/table.ts';
import { stepLengths, stepTokens, tracePoints } from '../../src/conform/trace.ts';
import { config, FormulaRuntime, formula, type Plant } from './fake-runtimes.ts';

const tokens = Array.from({ length: 40 }, (_, index) => index % config.vocabulary);
const plant = (tap: Plant['tap'], layer: number, token: number, channel: number, change: Plant['change']): Plant => ({
  tap,
  layer,
  token,
  channel,
  change,
});
const nudge = (value: number) => value + 1e-3;

describe('two backends that agree', () => {
  it('are found equal at every point', async () => {
    const { candidates } = await conform([formula('a'), formula('b'), formula('c')], tokens);
    expect(candidates.map(({ name, agrees, first }) => ({ name, agrees, first }))).toEqual([
      { name: 'b', agrees: true, first: null },
      { name: 'c', agrees: true, first: null },
    ]);
    const [b] = candidates;
    expect(b?.points.map(({ tap, layer, width }) => ({ tap, layer, width }))).toEqual(tracePoints(config));
    expect(b?.points.every(({ nmse, differing }) => nmse === 0 && differing === 0)).toBe(true);
    expect(b?.divergence).toEqual({ tokens: tokens.map(() => 0), mean: 0, allowed: null, ofRounding: null });
    expect(verdict(b!, 'a')).toBe('b agrees with a: equal bits at every tap of every layer');
  });
});

describe('a planted difference', () => {
  it('is named with layer, tap, token, channel and both values', async () => {
    const wrong = plant('attention', 2, 29, 5, nudge);
    const { candidates } = await conform([formula('wasm'), formula('other', wrong)], tokens);
    const right = new FormulaRuntime([]);
    await right.step({
      tokens: Int32Array.of(0),
      positions: Int32Array.of(29),
      sequences: Int32Array.of(0),
      pageTables: [],
      outputs: Int32Array.of(0),
    });
    const reference = right.tap('attention', 2)[5]!;
    const candidate = Math.fround(nudge(reference));
    expect(candidates[0]).toMatchObject({
      agrees: false,
      first: { tap: 'attention', layer: 2, token: 29, channel: 5, reference, candidate },
    });
    expect(verdict(candidates[0]!, 'wasm')).toMatch(
      /^other differs from wasm first in layer 2, attention, token 29, channel 5: other has -?0\.\d+, wasm has/,
    );
    const rows = tapRows(candidates[0]!).filter(({ layersOutside }) => layersOutside > 0);
    expect(rows).toMatchObject([{ tap: 'attention', layersOutside: 1, worst: { layer: 2, differing: 1 } }]);
  });

  it('is found in the earliest layer, then tap, then token, wherever else backends differ', async () => {
    const { candidates } = await conform(
      [
        formula('a'),
        formula(
          'b',
          plant('residual', 3, 0, 0, nudge),
          plant('feed-forward', 1, 2, 3, nudge),
          plant('attention', 1, 38, 1, nudge),
          plant('attention', 1, 37, 4, nudge),
          plant('logits', 4, 0, 0, nudge),
        ),
      ],
      tokens,
    );
    expect(candidates[0]?.first).toMatchObject({ tap: 'attention', layer: 1, token: 37, channel: 4 });
  });

  it.each([
    ['one unit in the last place', (value: number) => value * (1 + 2 ** -23)],
    ['a wrong sign of zero is as wrong', () => -0],
    ['a NaN', () => Number.NaN],
  ])('is found however small: %s', async (_, change) => {
    const { candidates } = await conform([formula('a'), formula('b', plant('latent', 0, 3, 1, change))], tokens);
    expect(candidates[0]?.first).toMatchObject({ tap: 'latent', layer: 0, token: 3, channel: 1 });
  });

  it('in the choice of experts counts tokens that went elsewhere, and any other order as a difference', async () => {
    const choice = (layer: number, token: number, channel: number, expert: number) =>
      plant('router-choices', layer, token, channel, () => expert);
    const { candidates } = await conform(
      // Token 0 chooses experts 0 and 1: turned round in layer 2, replaced in layer 3.
      [formula('a'), formula('b', choice(2, 0, 0, 1), choice(2, 0, 1, 0), choice(3, 0, 0, 5), choice(3, 7, 0, 4))],
      tokens,
    );
    expect(candidates[0]?.routerTokens).toEqual([
      { layer: 2, tokens: 0 },
      { layer: 3, tokens: 2 },
    ]);
    expect(candidates[0]?.first).toMatchObject({ tap: 'router-choices', layer: 2, token: 0, channel: 0 });
  });

  it('in the logits has the divergence of that token', async () => {
    const { candidates } = await conform([formula('a'), formula('b', plant('logits', 4, 5, 2, nudge))], tokens);
    const [result] = candidates;
    const { tokens: kl, mean } = result!.divergence;
    expect(kl[5]).toBeGreaterThan(0);
    expect(mean).toBe(kl[5]! / tokens.length);
    const nan = await conform(
      [
        formula('a'),
        formula(
          'b',
          plant('logits', 4, 5, 2, () => Number.NaN),
        ),
      ],
      tokens,
    );
    expect(nan.candidates[0]!.divergence.tokens[5]).toBe(Number.POSITIVE_INFINITY);
  });

  it('is none where both backends give NaN, which is told all the same', async () => {
    const nan = plant('residual', 1, 4, 4, () => Number.NaN);
    const { candidates } = await conform([formula('a', nan), formula('b', nan)], tokens);
    expect(candidates[0]).toMatchObject({ agrees: true });
    expect(notFinite(candidates[0]!)).toBe(1);
  });
});

describe('a prompt', () => {
  it('runs in few steps, and its end in ever smaller ones down to single tokens', () => {
    expect(stepLengths(300, 128)).toEqual([128, 92, 40, 24, 8, 2, 2, 1, 1, 1, 1]);
    expect(stepLengths(40, 16)).toEqual([16, 8, 8, 2, 2, 1, 1, 1, 1]);
    expect(stepLengths(3, 64)).toEqual([2, 1]);
    expect(stepLengths(1, 64)).toEqual([1]);
  });

  it('has steps whose taps stay within 512 MB, for Kimi K2 too', () => {
    const kimi = {
      ...config,
      layers: 61,
      denseLayers: 1,
      hidden: 7168,
      heads: 64,
      valueDim: 128,
      kvRank: 512,
      ropeDim: 64,
      experts: 384,
      expertsUsed: 8,
      vocabulary: 163_840,
    };
    const bytes = 4 * tracePoints(kimi).reduce((sum, { width }) => sum + width, 0);
    expect(stepTokens(kimi) * bytes).toBeLessThanOrEqual(512 * 2 ** 20);
    // More than 64 rows of one sequence attend in another form on a GPU.
    expect(stepTokens(kimi)).toBeGreaterThan(64);
    expect(stepTokens(config)).toBe(128);
  });
});
