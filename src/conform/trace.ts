/** What a runtime computes on its way through a prompt, part by part, in an order that depends on the model alone. */
import type { ModelConfig } from '../model/config.ts';
import { promptStep } from '../runtime/prompt-step.ts';
import type { Runtime } from '../runtime/runtime.ts';
import { type TapName, tapPoints } from '../runtime/taps.ts';

/** A tap of one layer, or the logits at the end of the last. */
export interface TracePoint {
  readonly tap: TapName | 'logits';
  /** The logits count as one layer after the last. */
  readonly layer: number;
  /** Values of one token. */
  readonly width: number;
}

/** Some tokens' values at one point. */
export interface TracePart {
  /** Index into tracePoints. */
  readonly point: number;
  readonly firstToken: number;
  /** [tokens][width] */
  readonly values: Float32Array | Int32Array;
}

/** Every point of the model, in the order of the forward pass. */
export function tracePoints(config: ModelConfig): TracePoint[] {
  return [...tapPoints(config), { tap: 'logits', layer: config.layers, width: config.vocabulary }];
}

/** Bytes of taps and logits that a step may leave behind. */
const stepBytes = 256 << 20;
/** Enough for every prefill kernel to fill its tiles. */
const mostStepTokens = 64;

/** Most tokens of one step, by what their taps take: 44 for Kimi K2. */
export function stepTokens(config: ModelConfig): number {
  const floats = tracePoints(config).reduce((sum, { width }) => sum + width, 0);
  return Math.max(1, Math.min(mostStepTokens, Math.floor(stepBytes / Float32Array.BYTES_PER_ELEMENT / floats)));
}

/** Tokens at the end of a prompt that run one at a time, as an answer does: decoding has kernels of its own. */
const singleTokens = 8;

/** How a prompt is cut into steps of at most `most` tokens. */
export function stepLengths(tokens: number, most: number): number[] {
  const singles = Math.min(singleTokens, tokens >> 1);
  const together = tokens - singles;
  const lengths = Array.from({ length: Math.ceil(together / most) }, (_, step) =>
    Math.min(most, together - step * most),
  );
  return [...lengths, ...new Array<number>(singles).fill(1)];
}

/** Runs the prompt alone from position 0. The runtime must have been loaded with taps. */
export async function* traceOf(runtime: Runtime, tokens: readonly number[]): AsyncGenerator<TracePart> {
  const { batchTokens, batchOutputs } = runtime.limits;
  const points = tracePoints(runtime.config);
  let firstToken = 0;
  for (const length of stepLengths(tokens.length, Math.min(batchTokens, batchOutputs))) {
    const logits = await runtime.step(promptStep(tokens, firstToken, firstToken + length));
    for (const [point, { tap, layer }] of points.entries()) {
      // A copy of the logits too: the view is the runtime's.
      yield { point, firstToken, values: tap === 'logits' ? logits.slice() : runtime.tap(tap, layer) };
    }
    firstToken += length;
  }
}
