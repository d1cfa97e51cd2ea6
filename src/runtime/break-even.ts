/** From how many tokens on a step is faster when its experts are brought to the device than when the ranks compute them. */
import { rowBytes } from '../gguf/sizes.ts';
import type { ModelConfig } from '../model/config.ts';
import type { ExpertPart, ExpertRanks } from './expert-ranks.ts';

export interface BreakEven {
  /** Infinity: never. */
  readonly tokens: number;
  /** The reason, for people. */
  readonly why: string;
}

/** Milliseconds of one layer with few and with many tokens. */
interface Measured {
  readonly tokens: number;
  readonly milliseconds: number;
}

/** Sizes on either side of where reading the experts gives way to multiplying. */
const measuredTokens = [32, 256] as const;
/** One to warm up, the others count. */
const measuredLayers = 4;

const nap = new Int32Array(new SharedArrayBuffer(4));

/** Asleep most of the time: every core has a rank, and whoever looks on from one halves that rank's speed, and so the others'. */
function turn(): Promise<void> {
  Atomics.wait(nap, 0, 0, 0.1);
  return new Promise(setImmediate);
}

/**
 * Time of the ranks' layers, asked for from here with random activations and experts. Of these as many are left out as find
 * room on the device: those it computes itself, though they will be more popular than random ones.
 */
async function measureRanks(
  ranks: ExpertRanks,
  config: ModelConfig,
  tokens: number,
  resident: readonly number[],
): Promise<Measured> {
  const { memory, offsets } = ranks;
  const { hidden, experts, expertsUsed } = config;
  const layers = Math.min(measuredLayers, config.layers - config.denseLayers);
  const words = new Int32Array(memory.buffer, memory.byteOffset, memory.byteLength / 4);
  const floats = new Float32Array(memory.buffer, memory.byteOffset, memory.byteLength / 4);
  const h = floats.subarray(offsets.h / 4, offsets.h / 4 + tokens * hidden);
  for (let i = 0; i < h.length; i++) h[i] = Math.random() - 0.5;
  floats.fill(1 / expertsUsed, offsets.weight / 4, offsets.weight / 4 + tokens * expertsUsed);
  const step = ranks.run(tokens);
  const left = step.then(() => {}); // rejects when a rank fails
  let fastest = Number.POSITIVE_INFINITY;
  for (let layer = 1; layer <= layers; layer++) {
    for (let token = 0; token < tokens; token++) {
      const first = Math.floor(Math.random() * experts);
      const stride = Math.max(1, Math.floor(experts / expertsUsed));
      for (let k = 0; k < expertsUsed; k++) {
        const expert = (first + k * stride) % experts;
        const onDevice = expert < (resident[config.denseLayers + layer - 1] ?? 0);
        words[offsets.chosen / 4 + token * expertsUsed + k] = onDevice ? -1 : expert;
      }
    }
    const begin = performance.now();
    Atomics.store(words, offsets.asked / 4, layer);
    while (Atomics.load(words, offsets.done / 4) < layer) await Promise.race([turn(), left]);
    fastest = Math.min(fastest, performance.now() - begin);
  }
  ranks.abort(); // the other layers need not be measured
  await step;
  return { tokens, milliseconds: fastest };
}

/** `gbPerSecond`: what streaming moves; `resident` [layers] experts that need not move. */
export async function measureBreakEven(
  ranks: ExpertRanks,
  config: ModelConfig,
  mostTokens: number,
  gbPerSecond: number,
  resident: readonly number[],
): Promise<BreakEven> {
  const few = await measureRanks(ranks, config, Math.min(measuredTokens[0], mostTokens), resident);
  const many = await measureRanks(ranks, config, Math.min(measuredTokens[1], mostTokens), resident);
  const bytes = ranks.parts().reduce((sum, part) => sum + bytesToMove(part, config, resident), 0);
  const layers = config.layers - config.denseLayers;
  const streaming = bytes / layers / gbPerSecond / 1e6;
  return breakEven(few, many, streaming);
}

function bytesToMove(part: ExpertPart, { experts }: ModelConfig, resident: readonly number[]): number {
  const { type, columns, rows, layer } = part;
  return rowBytes(type, columns) * rows * (experts - (resident[layer] ?? 0));
}

/** The ranks' time grows by a line through both measurements; streaming takes the same for any number of tokens. */
export function breakEven(few: Measured, many: Measured, streamingMilliseconds: number): BreakEven {
  // Noise may say that more tokens take less.
  const perToken = Math.max(0, (many.milliseconds - few.milliseconds) / Math.max(1, many.tokens - few.tokens));
  const fixed = Math.max(0, few.milliseconds - perToken * few.tokens);
  const ahead = streamingMilliseconds - fixed;
  const tokens = ahead <= 0 ? 1 : Math.max(1, Math.ceil(ahead / perToken));
  if (!Number.isFinite(streamingMilliseconds)) return { tokens, why: 'no steps bring their experts to the device' };
  const shown = (milliseconds: number) => `${milliseconds.toPrecision(3)} ms`;
  const ranks = `the ranks take ${shown(few.milliseconds)} for ${few.tokens} tokens and ${shown(many.milliseconds)} for ${many.tokens}`;
  const from = Number.isFinite(tokens) ? `steps of ${tokens} tokens and more` : 'no steps';
  return {
    tokens,
    why: `${from} bring their experts to the device: per layer that takes ${shown(streamingMilliseconds)}, ${ranks}`,
  };
}
