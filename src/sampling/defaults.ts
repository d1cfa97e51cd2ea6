import { perigeeError } from '../errors.ts';
import type { GgufModel } from '../gguf/types.ts';
import type { SamplingOptions } from './types.ts';

/** Draws from the model's own distribution. The seed is the caller's to choose. */
export const neutralSampling: SamplingOptions = {
  temperature: 1,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: [],
  seed: 0,
};

/** What a request gets when it does not say: the model's recommendation (general.sampling.*), else neutral sampling. */
export function samplingDefaults({ metadata }: Pick<GgufModel, 'metadata'>): SamplingOptions {
  const read = (name: string, neutral: number, least: number, most: number): number => {
    const key = `general.sampling.${name}`;
    const value = metadata.get(key) ?? neutral;
    if (typeof value === 'number' && value >= least && value <= most) return value;
    throw perigeeError('MODEL_BAD_CONFIG', {
      key,
      found: String(value),
      expected: `a number from ${least} to ${most}`,
    });
  };
  const any = Number.MAX_VALUE;
  return {
    ...neutralSampling,
    temperature: read('temp', neutralSampling.temperature, 0, any),
    topP: read('top_p', neutralSampling.topP, 0, 1),
    topK: read('top_k', neutralSampling.topK, 0, any),
    minP: read('min_p', neutralSampling.minP, 0, 1),
    repetitionPenalty: read('penalty_repeat', neutralSampling.repetitionPenalty, Number.MIN_VALUE, any),
  };
}
