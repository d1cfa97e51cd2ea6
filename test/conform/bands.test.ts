/** What a GPU owes the CPU: distances on equal inputs instead of equal bits, and likely next tokens on its own values. */
import { describe, expect, it } from 'vitest';
import { bandFor } from '../../src/conform/bands.ts';
import { type CandidateResult, conform } from '../../src/conform/conform.ts';
import { divergenceLine, routingLine, tapCells, tapRows, verdict } from '../../src/conform/table.ts';
import { config, deviceFormula, formula, type Plant, roundingFormula } from './fake-runtimes.ts';

const tokens = Array.from({ length: 40 }, (_, index) => index % config.vocabulary);

async function besideDevice(plants: Plant[], bias?: (layer: number) => Float32Array): Promise<CandidateResult> {
  const { candidates } = await conform([formula('native'), deviceFormula('cuda', ...plants)], tokens, bias);
  return candidates[0] as CandidateResult;
}

const everyToken = (tap: Plant['tap'], layer: number, channel: number, change: Plant['change']): Plant[] =>
  tokens.map((_, token) => ({ tap, layer, token, channel, change }));
const by = (error: number) => (value: number) => value + error;
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
  it('follows from the backend', () => {
    expect([bandFor('wasm'), bandFor('native')].map(({ name }) => name)).toEqual(['equal bits', 'equal bits']);
    expect(bandFor('cuda').name).toContain('an NMSE of at most 5e-4 a stage');
    expect(bandFor('hybrid')).toBe(bandFor('cuda'));
  });

  it('needs a CPU as the reference', async () => {
    const refused = { code: 'OPTION_INVALID', message: expect.stringContaining('a CPU backend first') };
    await expect(conform([deviceFormula('cuda'), formula('native')], tokens)).rejects.toMatchObject(refused);
  });
});

describe('a tap on a GPU', () => {
  it('may be a little off', async () => {
    const result = await besideDevice(everyToken('attention', 2, 3, by(1e-2)));
    expect(result).toMatchObject({ agrees: true, first: null, leftOut: 0 });
    expect(verdict(result, 'native')).toContain('an NMSE of at most 5e-4 a stage');
  });

  it('that is off by more is named where it is most', async () => {
    const worst: Plant = { tap: 'attention', layer: 2, token: 9, channel: 5, change: by(-4) };
    const { agrees, first } = await besideDevice([...everyToken('attention', 2, 3, by(0.2)), worst]);
    expect([agrees, first]).toMatchObject([false, { tap: 'attention', layer: 2, token: 9, channel: 5 }]);
  });

  it('may not hold a NaN', async () => {
    const nan: Plant = { tap: 'residual', layer: 1, token: 4, channel: 4, change: () => Number.NaN };
    expect((await besideDevice([nan])).first).toMatchObject({ tap: 'residual', layer: 1, token: 4, channel: 4 });
  });

  it('may be off by as many stages as came before it in its layer, which the table tells', async () => {
    // Each of 12 channels has a mean square of about a half: an error e in one of them is an NMSE of about e^2 / 6.
    const off = (tap: Plant['tap'], error: number) => besideDevice(everyToken(tap, 2, 3, by(error)));
    expect((await off('latent', 0.08)).first).toMatchObject({ tap: 'latent' });
    expect((await off('feed-forward', 0.08)).agrees).toBe(true);
    expect((await off('feed-forward', 0.2)).first).toMatchObject({ tap: 'feed-forward' });
    const result = await besideDevice([]);
    const cells = tapRows(result).map((row) => tapCells(row, result.band));
    expect(cells.map((row) => [row[0], row[6]])).toEqual([
      ['embedding', '5.00e-4'],
      ['latent', '5.00e-4'],
      ['attention', '1.00e-3'],
      ['router-scores', '1.50e-3'],
      ['router-choices', 'ties 1.00e-3'],
      ['feed-forward', '2.00e-3'],
      ['residual', '2.00e-3'],
      ['logits', '5.00e-4'],
    ]);
  });

  it('that is off spoils no later layer, and the last residual not the logits', async () => {
    const wrong = (layer: number) => everyToken('residual', layer, 0, by(3));
    const result = await besideDevice([...wrong(1), ...wrong(3)]);
    expect(result.first).toMatchObject({ tap: 'residual', layer: 1 });
    const outside = result.points.filter(({ within }) => !within).map(({ tap, layer }) => [tap, layer]);
    expect(outside).toEqual([
      ['residual', 1],
      ['residual', 3],
    ]);
  });
});

describe('a run on its own values', () => {
  /** Each residual is within its band, and together they change the logits. */
  const drifting = [0, 1, 2, 3].flatMap((layer) => everyToken('residual', layer, 0, by(0.1)));
  const logitsOff = (error: number) => everyToken('logits', 4, 2, by(error));

  it('is judged by the mean divergence of its logits', async () => {
    const { agrees, divergence } = await besideDevice(logitsOff(0.01));
    expect([agrees, divergence]).toMatchObject([true, { allowed: 1e-3, ofRounding: null }]);
    expect(divergence.mean).toBeGreaterThan(0);
  });

  it('that diverges by more is named, though every stage is within its band', async () => {
    const result = await besideDevice(drifting);
    expect([result.agrees, result.first]).toEqual([false, null]);
    expect(verdict(result, 'native')).toMatch(/^cuda differs from native: on its own values the mean KL divergence is/);
  });

  it('may diverge by twice what activations in bf16 do to the reference', async () => {
    const beside = async (rounding: number) => {
      const reference = roundingFormula('native', ...logitsOff(rounding));
      const { candidates } = await conform([reference, deviceFormula('cuda', ...drifting)], tokens);
      return candidates[0] as CandidateResult;
    };
    const result = await beside(0.5);
    const { allowed, ofRounding } = result.divergence;
    expect(result.agrees).toBe(true);
    expect(allowed).toBe(2 * (ofRounding as number));
    expect(divergenceLine(result, 'native')).toContain(
      '2 times what activations in bf16 put between native and itself',
    );
    expect(await beside(0.01)).toMatchObject({ agrees: false, divergence: { allowed: 1e-3 } });
  });
});

describe('other experts', () => {
  const after: Plant = { tap: 'residual', layer: 2, token: 0, channel: 1, change: by(9) };

  it('against the scores are a difference', async () => {
    const { first } = await besideDevice([elsewhere], biasFor(0.1));
    expect(first).toMatchObject({ tap: 'router-choices', layer: 2, token: 0, channel: 1, reference: 1, candidate: 3 });
  });

  it('at a tie, or as the scores say, are none, and the token counts no more in that layer', async () => {
    for (const gap of [1e-4, -0.1]) {
      const result = await besideDevice([elsewhere, after], biasFor(gap));
      expect(result).toMatchObject({ agrees: true, leftOut: 1 });
      expect(routingLine(result)).toContain('1 times of 80, 1 as the scores say');
    }
    const before: Plant = { ...after, tap: 'attention' };
    expect((await besideDevice([elsewhere, before], biasFor(1e-4))).first).toMatchObject({
      tap: 'attention',
      layer: 2,
    });
  });

  it('leave the token in its place in the layers that follow', async () => {
    const next: Plant = { ...after, tap: 'latent', layer: 3 };
    const result = await besideDevice([elsewhere, next], biasFor(1e-4));
    expect(result).toMatchObject({ leftOut: 1, first: { tap: 'latent', layer: 3, token: 0 } });
  });

  it('in another order are none', async () => {
    const turned: Plant[] = [0, 1].map((channel) => ({ ...elsewhere, channel, change: () => 1 - channel }));
    expect(await besideDevice(turned)).toMatchObject({ agrees: true, leftOut: 0 });
  });
});
