/** Results as rows of text, for the terminal and the report: per tap the layers that differ and the worst of them. */
import { tapNames } from '../runtime/taps.ts';
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

export const tapColumns = ['tap', 'layers outside', 'worst layer', 'tokens', 'max abs', 'NMSE', 'cosine difference'];

/** The cells of a row under tapColumns. Distances between expert ids mean nothing and are left out. */
export function tapCells({ tap, layers, layersOutside, worst }: TapRow): string[] {
  const measures = [worst.maxAbs, worst.nmse, worst.cosine].map(number);
  return [
    tap,
    `${layersOutside} of ${layers}`,
    worst.differing === 0 ? '-' : `${worst.layer}`,
    `${worst.differingTokens}`,
    ...(tap === 'router-choices' ? ['', '', ''] : measures),
  ];
}

/** Three digits, and words for what is no number. */
export function number(value: number): string {
  if (value === 0) return '0';
  return Number.isFinite(value) ? value.toExponential(2) : 'unbounded';
}

/** "native differs from wasm first in ..." or "native equals wasm ...". */
export function verdict({ name, band, first }: CandidateResult, reference: string): string {
  if (first === null) return `${name} agrees with ${reference}: ${band} at every tap of every layer`;
  const { tap, layer, token, channel } = first;
  const where = tap === 'logits' ? 'the logits' : `layer ${layer}, ${tap}`;
  return `${name} differs from ${reference} first in ${where}, token ${token}, channel ${channel}: ${name} has ${exact(first.candidate)}, ${reference} has ${exact(first.reference)}`;
}

/** Nine digits tell any two float32 values apart. */
function exact(value: number): string {
  return Object.is(value, -0) ? '-0' : `${Number(value.toPrecision(9))}`;
}

/** Mean and largest divergence of the next-token distributions, and tokens that went to other experts in any layer. */
export function summary({ kl, routerTokens }: CandidateResult): { klMean: number; klMax: number; rerouted: number } {
  return {
    klMean: kl.reduce((sum, value) => sum + value, 0) / kl.length,
    klMax: Math.max(...kl),
    rerouted: routerTokens.reduce((sum, { tokens }) => sum + tokens, 0),
  };
}

/** What bands leave out; null where nothing is. */
export function leftOutLine({ leftOut, kl }: CandidateResult): string | null {
  if (leftOut === 0) return null;
  return `${leftOut} of ${kl.length} tokens went to other experts as their scores say: from there on they are left out`;
}

/** Values that are NaN or infinite anywhere: agreement on them says little. */
export function notFinite({ points }: CandidateResult): number {
  return points.reduce((sum, point) => sum + point.notFinite, 0);
}
