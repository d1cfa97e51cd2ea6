/** A candidate's trace beside the reference's: measures at every point, the first divergence, the verdict. */
import type { ModelConfig } from '../model/config.ts';
import type { Runtime } from '../runtime/runtime.ts';
import { klDivergence } from '../sampling/distribution.ts';
import { Differences, type Divergence, differentSets, type Measures } from './measures.ts';
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
  /** Per token: the divergence of the candidate's next-token distribution from the reference's, in nats; Infinity for NaN. */
  readonly kl: readonly number[];
  /**
   * The first value outside the band: the earliest layer and tap, there the earliest token and channel. A layer's values
   * depend on earlier layers and earlier tokens of them only, so nothing before it can be the cause.
   */
  readonly first: FirstDivergence | null;
}

/** What a backend owes the reference at each point. */
export interface Band {
  readonly name: string;
  holds(measures: Measures): boolean;
}

const equalBits: Band = { name: 'equal bits', holds: ({ differing }) => differing === 0 };

/** The CPU backends compute the same bits (engine/kernels/kernels.h). */
export const bands: Readonly<Record<Runtime['backend'], Band>> = {
  wasm: equalBits,
  native: equalBits,
  hybrid: equalBits,
  cuda: equalBits,
};

export class Comparison {
  readonly #band: Band;
  readonly #points: readonly TracePoint[];
  readonly #differences: readonly Differences[];
  readonly #routerTokens = new Map<number, number>();
  readonly #kl: number[] = [];

  constructor(config: ModelConfig, band: Band) {
    this.#band = band;
    this.#points = tracePoints(config);
    this.#differences = this.#points.map(() => new Differences());
  }

  /** Adds one part of the candidate's trace and what the reference had there. */
  add({ point, firstToken, values }: TracePart, reference: TracePart['values']): void {
    const { tap, layer, width } = this.#points[point]!;
    if (reference.length !== values.length) throw new Error(`traces differ in length at ${tap} of layer ${layer}`);
    if (values instanceof Int32Array) {
      const tokens = differentSets(reference as Int32Array, values, width);
      this.#routerTokens.set(layer, (this.#routerTokens.get(layer) ?? 0) + tokens);
    }
    // Expert ids are exact as floats; their distances mean nothing, their first difference does.
    const [expected, found] = [floats(reference), floats(values)];
    this.#differences[point]!.add(expected, found, width, firstToken);
    if (tap !== 'logits') return;
    for (let row = 0; row < found.length; row += width) {
      this.#kl.push(divergence(expected.subarray(row, row + width), found.subarray(row, row + width)));
    }
  }

  result(): ComparisonResult {
    const points = this.#points.map((point, index) => {
      const measures = this.#differences[index]!.result();
      return { ...point, ...measures, within: this.#band.holds(measures) };
    });
    const outside = points.find(({ within }) => !within);
    return {
      points,
      routerTokens: [...this.#routerTokens].map(([layer, tokens]) => ({ layer, tokens })),
      kl: this.#kl,
      first: outside?.first ? { tap: outside.tap, layer: outside.layer, ...outside.first } : null,
    };
  }
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
