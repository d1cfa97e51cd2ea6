/** A candidate's trace beside the reference's: measures at every point, the first divergence. */
import type { ModelConfig } from '../model/config.ts';
import type { Limits } from './bands.ts';
import { divergences } from './divergence.ts';
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
  /**
   * Tokens that went to other experts as their scores say, each layer for itself: they are left out of what that layer
   * computes after the choice.
   */
  readonly leftOut: number;
  /** Of the next-token distributions, per token. */
  readonly divergences: readonly number[];
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
  readonly #limits: Limits | null;
  readonly #bias: RouterBias;
  readonly #groups: number;
  readonly #points: readonly TracePoint[];
  readonly #differences: readonly Differences[];
  readonly #routerTokens = new Map<number, number>();
  /** The first token of each layer that went elsewhere against its scores. */
  readonly #misrouted = new Map<number, Rerouted>();
  /** Of the layer that is being added: tokens that count no more, and what the candidate chose experts by. */
  readonly #strayed = new Set<number>();
  #scores: Float32Array = new Float32Array();
  readonly #divergences: number[] = [];
  #layer = 0;
  #leftOut = 0;

  constructor(config: ModelConfig, limits: Limits | null, bias: RouterBias) {
    this.#limits = limits;
    this.#bias = bias;
    this.#groups = config.expertGroups;
    this.#points = tracePoints(config);
    this.#differences = this.#points.map(() => new Differences());
  }

  /** Adds one part of the candidate's trace and what the reference had there. */
  add({ point, firstToken, values }: TracePart, reference: TracePart['values']): void {
    const { tap, layer, width } = this.#points[point]!;
    if (reference.length !== values.length) throw new Error(`traces differ in length at ${tap} of layer ${layer}`);
    if (layer !== this.#layer) this.#strayed.clear();
    this.#layer = layer;
    if (tap === 'router-scores') this.#scores = biased(values as Float32Array, this.#bias(layer));
    if (values instanceof Int32Array) this.#addChoices(layer, reference as Int32Array, values, width, firstToken);
    // Expert ids are exact as floats; their distances mean nothing, their first difference does.
    const [expected, found] = [floats(reference), floats(values)];
    this.#differences[point]!.add(expected, found, width, firstToken, this.#strayed);
    if (tap === 'logits') this.#divergences.push(...divergences(expected, found, width));
  }

  #addChoices(layer: number, reference: Int32Array, found: Int32Array, used: number, firstToken: number): void {
    const rerouted = reroutedTokens(reference, found, used, firstToken, this.#scores, this.#groups);
    this.#routerTokens.set(layer, (this.#routerTokens.get(layer) ?? 0) + rerouted.length);
    if (this.#limits === null) return;
    for (const each of rerouted) {
      if (each.gap < this.#limits.tie) this.#strayed.add(each.token);
      else if (!this.#misrouted.has(layer)) this.#misrouted.set(layer, each);
    }
    this.#leftOut += this.#strayed.size;
  }

  result(): ComparisonResult {
    const points = this.#points.map((point, index) => {
      const measures = this.#differences[index]!.result();
      return { ...point, ...measures, within: this.#holds(point, measures) };
    });
    const outside = points.find(({ within }) => !within);
    const place = outside && this.#placeOf(outside);
    return {
      points,
      routerTokens: [...this.#routerTokens].map(([layer, tokens]) => ({ layer, tokens })),
      leftOut: this.#leftOut,
      divergences: this.#divergences,
      first: outside && place ? { tap: outside.tap, layer: outside.layer, ...place } : null,
    };
  }

  #holds({ tap, layer }: TracePoint, { differing, nmse }: Measures): boolean {
    if (this.#limits === null) return differing === 0;
    return tap === 'router-choices' ? !this.#misrouted.has(layer) : nmse <= this.#limits.nmse[tap];
  }

  #placeOf({ tap, layer, first, largest }: PointResult): Divergence | null {
    if (this.#limits === null) return first;
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
