/** What a GPU owes the CPU: distances instead of equal bits. */
import { describe, expect, it } from 'vitest';
import { bandFor } from '../../src/conform/bands.ts';
import { type CandidateResult, conform } from '../../src/conform/conform.ts';
import { leftOutLine, verdict } from '../../src/conform/table.ts';
import { config, deviceFormula, formula, type Plant } from './fake-runtimes.ts';

const tokens = Array.from({ length: 40 }, (_, index) => index % config.vocabulary);

async function besideDevice(plants: Plant[], bias?: (layer: number) => Float32Array): Promise<CandidateResult> {
  const { candidates } = await conform([formula('native'), deviceFormula('cuda', ...plants)], tokens, bias);
  return candidates[0] as CandidateResult;
}

const everyToken = (tap: Plant['tap'], layer: number, channel: number, change: Plant['change']): Plant[] =>
  tokens.map((_, token) => ({ tap, layer, token, channel, change }));
/** Token 0 chooses experts 0 and 1 of layer 2; expert 3 in place of 1. */
const elsewhere: Plant = { tap: 'router-choices', layer: 2, token: 0, channel: 1, change: () => 3 };
/** Scores of token 0 in layer 2 are sines; the bias brings those of experts 1 and 3 to `gap`. */
const biasFor = (gap: number) => () =>
  Float32Array.from({ length: config.experts }, (_, expert) => {
    const wanted = new Map([
      [1, 0.5 + gap],
      [3, 0.5],
    ]).get(expert);
    return wanted === undefined ? 0 : wanted - Math.sin(1 + expert * 7 + 2 * 3 + 3);
  });

describe('which rule applies', () => {
  it('follows from the backends', () => {
    expect(bandFor('wasm', 'native').name).toBe('equal bits');
    expect(bandFor('native', 'cuda').name).toContain('an NMSE of at most 5e-4');
    expect(bandFor('hybrid', 'native')).toBe(bandFor('native', 'cuda'));
  });
});

describe('a tap on a GPU', () => {
  it('may be a little off', async () => {
    const result = await besideDevice(everyToken('attention', 2, 3, (value) => value + 1e-2));
    expect(result).toMatchObject({ agrees: true, first: null, leftOut: 0 });
    expect(verdict(result, 'native')).toContain('an NMSE of at most 5e-4');
  });

  it('that is off by more is named where it is most', async () => {
    const planted = everyToken('attention', 2, 3, (value) => value + 0.2);
    const worst: Plant = { tap: 'attention', layer: 2, token: 9, channel: 5, change: (value) => value - 4 };
    const { agrees, first } = await besideDevice([...planted, worst]);
    expect([agrees, first]).toMatchObject([false, { tap: 'attention', layer: 2, token: 9, channel: 5 }]);
  });

  it('may not hold a NaN', async () => {
    const nan: Plant = { tap: 'residual', layer: 1, token: 4, channel: 4, change: () => Number.NaN };
    expect((await besideDevice([nan])).first).toMatchObject({ tap: 'residual', layer: 1, token: 4, channel: 4 });
  });

  it('may hand on the error that it began with, but not the first stage that has one', async () => {
    const off = (tap: Plant['tap'], by: number) => everyToken(tap, 2, 3, (value) => value + by);
    expect((await besideDevice(off('residual', 0.15))).first).toMatchObject({ tap: 'residual', layer: 2 });
    const handedOn = [...off('attention', 0.03), ...off('residual', 0.15)];
    expect(await besideDevice(handedOn)).toMatchObject({ agrees: true });
  });

  it('of logits is judged by the mean divergence', async () => {
    const off = (by: number) => besideDevice(everyToken('logits', 4, 2, (value) => value + by));
    expect((await off(0.02)).agrees).toBe(true);
    expect((await off(1)).first).toMatchObject({ tap: 'logits' });
  });
});

describe('other experts', () => {
  it('against the scores are a difference', async () => {
    const { first } = await besideDevice([elsewhere], biasFor(0.1));
    expect(first).toMatchObject({ tap: 'router-choices', layer: 2, token: 0, channel: 1, reference: 1, candidate: 3 });
  });

  it('at a tie, or as the scores say, are none, and the token counts no more from there on', async () => {
    const after: Plant = { tap: 'residual', layer: 2, token: 0, channel: 0, change: (value) => value + 9 };
    const result = await besideDevice([elsewhere, after], biasFor(1e-4));
    expect(result).toMatchObject({ agrees: true, leftOut: 1 });
    expect(leftOutLine(result)).toContain('1 of 40 tokens');
    expect(await besideDevice([elsewhere, after], biasFor(-0.1))).toMatchObject({ agrees: true, leftOut: 1 });
    const before: Plant = { tap: 'residual', layer: 1, token: 0, channel: 0, change: (value) => value + 9 };
    expect((await besideDevice([elsewhere, before], biasFor(1e-4))).first).toMatchObject({ tap: 'residual', layer: 1 });
  });

  it('in another order are none', async () => {
    const turned: Plant[] = [0, 1].map((channel) => ({ ...elsewhere, channel, change: () => 1 - channel }));
    expect(await besideDevice(turned)).toMatchObject({ agrees: true, leftOut: 0 });
  });
});
