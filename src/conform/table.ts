/** Results as rows of text, for the terminal and the report: per tap the layers that differ and the worst of them. */
import { tapNames } from '../runtime/taps.ts';
import type { Band } from './bands.ts';
import type { PointResult } from './compare.ts';
import type { CandidateResult } from './conform.ts';

export interface TapRow {
  readonly tap: PointResult['tap'];
  readonly layers: number;
  readonly layersOutside: number;
  readonly worst: PointResult;
}

/** One row per kind of tap. The worst layer is the one of the largest NMSE; of equals the first. */
export function tapRows({ points }: CandidateResult): TapRow[] {
  return ([...tapNames, 'logits'] as const).flatMap((tap) => {
    const all = points.filter((point) => point.tap === tap);
    if (all.length === 0) return []; // a model without experts has no router
    const worst = all.reduce((a, b) => (b.nmse > a.nmse || (a.differing === 0 && b.differing > 0) ? b : a));
    return [{ tap, layers: all.length, layersOutside: all.filter(({ within }) => !within).length, worst }];
  });
}

export const tapColumns = [
  'tap',
  'layers outside',
  'worst layer',
  'tokens',
  'max abs',
  'NMSE',
  'NMSE allowed',
  'cosine difference',
];

/** The cells of a row under tapColumns. Distances between expert ids mean nothing and are left out. */
export function tapCells({ tap, layers, layersOutside, worst }: TapRow, { limits }: Band): string[] {
  const { maxAbs, nmse, cosine } = worst;
  const where = [tap, `${layersOutside} of ${layers}`, worst.differing === 0 ? '-' : `${worst.layer}`];
  const tokens = `${worst.differingTokens}`;
  if (tap === 'router-choices') return [...where, tokens, '', '', limits ? `ties ${number(limits.tie)}` : '', ''];
  return [...where, tokens, number(maxAbs), number(nmse), number(limits?.nmse[tap] ?? 0), number(cosine)];
}

/** Three digits, and words for what is no number. */
export function number(value: number): string {
  if (value === 0) return '0';
  return Number.isFinite(value) ? value.toExponential(2) : 'unbounded';
}

/** "native differs from wasm first in ..." or "native agrees with wasm ...". */
export function verdict({ name, band, first, agrees, divergence }: CandidateResult, reference: string): string {
  const whole = band.limits === null ? ' at every tap of every layer' : ', and likely next tokens on its own values';
  if (agrees) return `${name} agrees with ${reference}: ${band.name}${whole}`;
  if (first === null) {
    return `${name} differs from ${reference}: on its own values the mean KL divergence is ${number(divergence.mean)}, allowed ${number(divergence.allowed ?? 0)}`;
  }
  const { tap, layer, token, channel } = first;
  const where = tap === 'logits' ? 'the logits' : `layer ${layer}, ${tap}`;
  return `${name} differs from ${reference} first in ${where}, token ${token}, channel ${channel}: ${name} has ${exact(first.candidate)}, ${reference} has ${exact(first.reference)}`;
}

/** Nine digits tell any two float32 values apart. */
function exact(value: number): string {
  return Object.is(value, -0) ? '-0' : `${Number(value.toPrecision(9))}`;
}

/** How far the next-token distributions are apart, and why that much is allowed. */
export function divergenceLine({ divergence, band }: CandidateResult, reference: string): string {
  const { tokens, mean, allowed, ofRounding } = divergence;
  const found = `KL divergence of the logits: mean ${number(mean)}, largest ${number(Math.max(...tokens))}`;
  if (band.limits === null || allowed === null) return found;
  const why =
    ofRounding === null
      ? ''
      : `, ${band.limits.rounding} times what activations in bf16 put between ${reference} and itself (${number(ofRounding)})`;
  return `on its own values: ${found}; allowed ${number(allowed)}${why}`;
}

/** Tokens that went to other experts; what bands leave out of the measures. */
export function routingLine({ routerTokens, leftOut, band, divergence }: CandidateResult): string {
  const rerouted = routerTokens.reduce((sum, { tokens }) => sum + tokens, 0);
  const found = `other experts: ${rerouted} times of ${routerTokens.length * divergence.tokens.length}`;
  return band.limits === null
    ? found
    : `${found}, ${leftOut} as the scores say and left out of what follows in that layer`;
}

/** Values that are NaN or infinite anywhere: agreement on them says little. */
export function notFinite({ points }: CandidateResult): number {
  return points.reduce((sum, point) => sum + point.notFinite, 0);
}
