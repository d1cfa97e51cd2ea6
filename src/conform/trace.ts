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
const stepBytes = 512 << 20;
/** Enough for every prefill kernel to fill its tiles, and for a GPU to attend in the expanded form. */
const mostStepTokens = 128;

/** Most tokens of one step, by what their taps take: 83 for Kimi K2. */
export function stepTokens(config: ModelConfig): number {
  const floats = tracePoints(config).reduce((sum, { width }) => sum + width, 0);
  return Math.max(1, Math.min(mostStepTokens, Math.floor(stepBytes / Float32Array.BYTES_PER_ELEMENT / floats)));
}

/** Steps at the end of a prompt: a GPU has other kernels for few rows, for pairs and for one, and replays what came before. */
const lastSteps = [40, 24, 8, 2, 2, 1, 1, 1, 1];

/** How a prompt is cut into steps of at most `most` tokens: half of it at least in as few as can be. */
export function stepLengths(tokens: number, most: number): number[] {
  const last = lastSteps.filter((length) => length <= most);
  const sum = () => last.reduce((total, length) => total + length, 0);
  while (2 * sum() > tokens) last.shift();
  const together = tokens - sum();
  const lengths = Array.from({ length: Math.ceil(together / most) }, (_, step) =>
    Math.min(most, together - step * most),
  );
  return [...lengths, ...last];
}

/** Some tokens' logits. */
interface LogitsPart extends TracePart {
  readonly values: Float32Array;
}

/** The residuals, as StepBatch has them, of the step that begins with a token. */
export type ResidualsOf = (firstToken: number, tokens: number) => Promise<Float32Array>;

/** Runs the prompt alone from position 0. Without taps a GPU runs what its users run: other kernels, and graphs of them. */
export async function* logitsOf(
  runtime: Runtime,
  tokens: readonly number[],
  residualsOf?: ResidualsOf,
): AsyncGenerator<LogitsPart> {
  const { batchTokens, batchOutputs } = runtime.limits;
  const point = tracePoints(runtime.config).length - 1;
  let firstToken = 0;
  for (const count of stepLengths(tokens.length, Math.min(batchTokens, batchOutputs))) {
    const batch = promptStep(tokens, firstToken, firstToken + count);
    const values = await runtime.step(
      residualsOf ? { ...batch, residuals: await residualsOf(firstToken, count) } : batch,
    );
    // A copy: the view is the runtime's.
    yield { point, firstToken, values: values.slice() };
    firstToken += count;
  }
}

/** Every point of a prompt. The runtime must have been loaded with taps. */
export async function* traceOf(
  runtime: Runtime,
  tokens: readonly number[],
  residualsOf?: ResidualsOf,
): AsyncGenerator<TracePart> {
  const points = tracePoints(runtime.config);
  for await (const { firstToken, values } of logitsOf(runtime, tokens, residualsOf)) {
    for (const [point, { tap, layer }] of points.entries()) {
      yield { point, firstToken, values: tap === 'logits' ? values : runtime.tap(tap, layer) };
    }
  }
}
