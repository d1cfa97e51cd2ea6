/**
 * From logits to a token. The transforms and their order:
 *
 *   logit bias → repetition penalty → presence and frequency penalties → constraint → greedy, if the temperature is 0; else
 *   temperature → top-k → softmax → min-p → top-p → a draw
 *
 * The repetition penalty looks at prompt and generated tokens and divides positive logits, multiplies negative ones. The
 * other two look at generated tokens only and are subtracted. Top-k keeps exactly k tokens. Min-p compares with the
 * likeliest token. Top-p is of what min-p left. Where tokens tie at a cut, the lowest ids stay.
 *
 * All of it is exact over the whole vocabulary, in float64; the same seed gives the same tokens on every machine, since
 * Math.exp is V8's own and not the C library's.
 */
import { perigeeError } from '../errors.ts';
import { Candidates, type Logits, largest } from './candidates.ts';
import { LogitAdjustments } from './penalties.ts';
import { SplitMix64 } from './random.ts';
import type { Sampler, SamplingOptions } from './types.ts';

/** A sampler for one sequence that continues `prompt`. */
export function createSampler(options: SamplingOptions, prompt: ArrayLike<number>): Sampler {
  return new TokenSampler(options, prompt);
}

class TokenSampler implements Sampler {
  readonly #options: SamplingOptions;
  readonly #adjustments: LogitAdjustments;
  readonly #random: SplitMix64;

  constructor(options: SamplingOptions, prompt: ArrayLike<number>) {
    this.#options = options;
    this.#adjustments = new LogitAdjustments(options, prompt);
    this.#random = new SplitMix64(options.seed);
  }

  next(logits: Float32Array, allowed: Int32Array | null = null): number {
    let adjusted = this.#adjusted(logits, allowed, true);
    let best = largest(adjusted);
    if (best < 0 && allowed !== null && this.#adjustments.postpones) {
      // What a constraint has brought to its end cannot be made longer.
      adjusted = this.#adjusted(logits, allowed, false);
      best = largest(adjusted);
    }
    if (best < 0) throw perigeeError('NO_TOKEN_ALLOWED', {});
    const token = this.#options.temperature === 0 ? best : this.#draw(adjusted, adjusted[best]!);
    this.#adjustments.record(token);
    return token;
  }

  #adjusted(logits: Float32Array, allowed: Int32Array | null, postpone: boolean): Logits {
    if (!this.#adjustments.any && allowed === null) return logits;
    const { adjusted } = workspaceFor(logits.length);
    adjusted.set(logits);
    this.#adjustments.apply(adjusted, postpone);
    if (allowed !== null) keepAllowed(adjusted, allowed);
    return adjusted;
  }

  #draw(logits: Logits, max: number): number {
    const { candidates } = workspaceFor(logits.length);
    candidates.fill(logits, max, this.#options);
    return candidates.at(this.#random.uniform());
  }
}

function keepAllowed(logits: Float64Array, allowed: Int32Array): void {
  for (let word = 0; word * 32 < logits.length; word++) {
    const bits = allowed[word]!;
    if (bits === -1) continue;
    const start = word * 32;
    if (bits === 0) logits.fill(Number.NEGATIVE_INFINITY, start, start + 32);
    else
      for (let bit = 0; bit < 32; bit++) if (((bits >>> bit) & 1) === 0) logits[start + bit] = Number.NEGATIVE_INFINITY;
  }
}

interface Workspace {
  readonly adjusted: Float64Array;
  readonly candidates: Candidates;
}

/** Used by all samplers: a call to next() begins and ends with it, and it would be 5 MB for each otherwise. */
let workspace: Workspace = { adjusted: new Float64Array(0), candidates: new Candidates(0) };

function workspaceFor(vocabulary: number): Workspace {
  if (workspace.adjusted.length !== vocabulary) {
    workspace = { adjusted: new Float64Array(vocabulary), candidates: new Candidates(vocabulary) };
  }
  return workspace;
}
