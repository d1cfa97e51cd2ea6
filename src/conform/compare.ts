/** A candidate's trace beside the reference's: measures at every point, the first divergence, the verdict. */
import type { ModelConfig } from '../model/config.ts';
import { klDivergence } from '../sampling/distribution.ts';
import type { Band } from './bands.ts';
import { Differences, type Divergence, type Measures } from './measures.ts';
import { type Rerouted, reroutedTokens } from './routing.ts';
import { type TracePart, type TracePoint, tracePoints } from './trace.ts';

export interface PointResult extends TracePoint, Measures {
  /** Whether the candidate keeps to its band here. */
  readonly within: boolean;
}

export interface FirstDivergence extends Divergence {
  readonly tap: TracePoint['tap'];
  readonly layer: number;
}

export interface ComparisonResult {
  /** In the order of the forward pass. */
  readonly points: readonly PointResult[];
  /** Tokens whose set of experts differs, by layer; dense layers have none. */
  readonly routerTokens: readonly { readonly layer: number; readonly tokens: number }[];
  /** Tokens that went to other experts as their scores say: from there on they are left out of the measures. */
  readonly leftOut: number;
  /** Per token: the divergence of the candidate's next-token distribution from the reference's, in nats; Infinity for NaN. */
  readonly kl: readonly number[];
  /**
   * The first value outside the band: the earliest layer and tap, there the earliest token and channel, or where bits may
   * differ those of the largest difference. A layer's values depend on earlier layers and earlier tokens of them only, so
   * nothing before it can be the cause.
   */
  readonly first: FirstDivergence | null;
}

/** The router's bias of a layer, [experts]; null where it has none. */
export type RouterBias = (layer: number) => Float32Array | null;

export class Comparison {
  readonly #band: Band;
  readonly #bias: RouterBias;
  readonly #groups: number;
  readonly #points: readonly TracePoint[];
  readonly #differences: readonly Differences[];
  /** Those of all tokens, of taps whose errors later stages begin with. */
  readonly #errors: readonly Differences[];
  readonly #routerTokens = new Map<number, number>();
  /** The first token of each layer that went elsewhere against its scores. */
  readonly #misrouted = new Map<number, Rerouted>();
  readonly #leftOut = new Set<number>();
  /** Of the layer that is being added, what the candidate chose experts by. */
  #scores: Float32Array = new Float32Array();
  readonly #kl: number[] = [];

  constructor(config: ModelConfig, band: Band, bias: RouterBias) {
    this.#band = band;
    this.#bias = bias;
    this.#groups = config.expertGroups;
    this.#points = tracePoints(config);
    this.#differences = this.#points.map(() => new Differences());
    this.#errors = this.#points.map(() => new Differences());
  }

  /** Adds one part of the candidate's trace and what the reference had there. */
  add({ point, firstToken, values }: TracePart, reference: TracePart['values']): void {
    const { tap, layer, width } = this.#points[point]!;
    if (reference.length !== values.length) throw new Error(`traces differ in length at ${tap} of layer ${layer}`);
    if (tap === 'router-scores') this.#scores = biased(values as Float32Array, this.#bias(layer));
    if (values instanceof Int32Array) this.#addChoices(layer, reference as Int32Array, values, width, firstToken);
    // Expert ids are exact as floats; their distances mean nothing, their first difference does.
    const [expected, found] = [floats(reference), floats(values)];
    this.#differences[point]!.add(expected, found, width, firstToken, this.#leftOut);
    if (this.#band.limits !== null) this.#errors[point]!.add(expected, found, width, firstToken);
    if (tap !== 'logits') return;
    for (let row = 0; row < found.length; row += width) {
      this.#kl.push(divergence(expected.subarray(row, row + width), found.subarray(row, row + width)));
    }
  }

  #addChoices(layer: number, reference: Int32Array, found: Int32Array, used: number, firstToken: number): void {
    const rerouted = reroutedTokens(reference, found, used, firstToken, this.#scores, this.#groups);
    this.#routerTokens.set(layer, (this.#routerTokens.get(layer) ?? 0) + rerouted.length);
    const tie = this.#band.limits?.tie ?? 0;
    for (const each of rerouted) {
      if (this.#leftOut.has(each.token)) continue;
      if (each.gap < tie) this.#leftOut.add(each.token);
      else if (!this.#misrouted.has(layer)) this.#misrouted.set(layer, each);
    }
  }

  result(): ComparisonResult {
    const settled = this.#kl.filter((_, token) => !this.#leftOut.has(token));
    const divergences = settled.length > 0 ? settled : this.#kl;
    const klMean = divergences.reduce((sum, value) => sum + value, 0) / divergences.length;
    const points = this.#points.map((point, index) => {
      const measures = this.#differences[index]!.result();
      return { ...point, ...measures, within: this.#holds(index, measures, klMean) };
    });
    const outside = points.find(({ within }) => !within);
    const place = outside && this.#placeOf(outside);
    return {
      points,
      routerTokens: [...this.#routerTokens].map(([layer, tokens]) => ({ layer, tokens })),
      leftOut: this.#leftOut.size,
      kl: this.#kl,
      first: outside && place ? { tap: outside.tap, layer: outside.layer, ...place } : null,
    };
  }

  #holds(index: number, { differing, nmse }: Measures, klMean: number): boolean {
    const { limits } = this.#band;
    const { tap, layer } = this.#points[index]!;
    if (limits === null) return differing === 0;
    if (tap === 'router-choices') return !this.#misrouted.has(layer);
    return tap === 'logits' ? klMean <= limits.kl : nmse <= limits.nmse + limits.growth * this.#errorBefore(index);
  }

  /** The largest error among what a stage of a layer may begin with: earlier taps of the layer, and what came into it. */
  #errorBefore(index: number): number {
    const { layer } = this.#points[index]!;
    const before = this.#points.map((point, at) => ({ ...point, at })).slice(0, index);
    const inputs = before.filter(
      (point) =>
        (point.layer === layer && !point.tap.startsWith('router')) ||
        (point.layer === layer - 1 && point.tap === 'residual'),
    );
    return Math.max(0, ...inputs.map(({ at }) => this.#errors[at]!.result().nmse));
  }

  #placeOf({ tap, layer, first, largest }: PointResult): Divergence | null {
    if (this.#band.limits === null) return first;
    return tap === 'router-choices' ? (this.#misrouted.get(layer) ?? null) : largest;
  }
}

/** What a router chooses by: gated scores, [tokens][experts], and the bias of each expert. */
function biased(scores: Float32Array, bias: Float32Array | null): Float32Array {
  return bias === null ? scores : scores.map((score, index) => score + (bias[index % bias.length] as number));
}

function floats(values: TracePart['values']): Float32Array {
  return values instanceof Float32Array ? values : new Float32Array(values);
}

/** The Kullback-Leibler divergence of one token's logits; 0 for equal values, also where they are no distribution. */
function divergence(reference: Float32Array, candidate: Float32Array): number {
  if (reference.every((logit, id) => Object.is(logit, candidate[id]))) return 0;
  const kl = klDivergence(reference, candidate);
  // Rounding may leave a negative zero's worth; the divergence of distributions is never negative.
  return Number.isNaN(kl) ? Number.POSITIVE_INFINITY : Math.max(0, kl);
}
