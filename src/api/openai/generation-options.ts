import { type Static, Type } from '@sinclair/typebox';
import { neutralSampling } from '../../sampling/defaults.ts';
import type { SamplingOptions } from '../../sampling/types.ts';
import type { Tokenizer } from '../../tokenizer/types.ts';
import { sharedFields } from './fields.ts';
import { fieldInvalid } from './validate.ts';

const shared = Type.Object(sharedFields);
type SharedFields = Static<typeof shared>;

export interface ToRequestContext {
  readonly tokenizer: Tokenizer;
  /** Sampling for what the request leaves open: the model's recommendation. Its seed is not used. */
  readonly defaults?: SamplingOptions;
}

/** How a request's answers are drawn and where they end. */
export interface GenerationOptions {
  readonly sampling: SamplingOptions;
  readonly stopStrings: readonly string[];
  readonly stopTokens: readonly number[];
  readonly ignoreEndOfTurn: boolean;
  readonly minTokens: number;
}

export function generationOptions(fields: SharedFields, context: ToRequestContext): GenerationOptions {
  const { stop, stop_token_ids: ids = [] } = fields;
  return {
    sampling: toSampling(fields, context),
    stopStrings: typeof stop === 'string' ? [stop] : (stop ?? []),
    stopTokens: ids.map((id, i) => knownToken(id, `stop_token_ids.${i}`, context.tokenizer)),
    ignoreEndOfTurn: fields.ignore_eos ?? false,
    minTokens: fields.min_tokens ?? 0,
  };
}

/** Sampling of the choice `index` of several answers to one prompt: each draws for itself, and all follow from the seed. */
export function samplingOfChoice(sampling: SamplingOptions, index: number): SamplingOptions {
  return { ...sampling, seed: sampling.seed + index };
}

/** `id`, if the model has it. */
export function knownToken(id: number, field: string, { vocabularySize }: Tokenizer): number {
  if (id < vocabularySize) return id;
  throw fieldInvalid(field, `a token id of this model, 0 to ${vocabularySize - 1}`, id);
}

function toSampling(fields: SharedFields, { tokenizer, defaults }: ToRequestContext): SamplingOptions {
  const base = defaults ?? neutralSampling;
  const bias = Object.entries(fields.logit_bias ?? {});
  return {
    temperature: fields.temperature ?? base.temperature,
    topP: fields.top_p ?? base.topP,
    topK: fields.top_k === undefined ? base.topK : Math.max(0, fields.top_k),
    minP: fields.min_p ?? base.minP,
    repetitionPenalty: fields.repetition_penalty ?? base.repetitionPenalty,
    presencePenalty: fields.presence_penalty ?? base.presencePenalty,
    frequencyPenalty: fields.frequency_penalty ?? base.frequencyPenalty,
    logitBias: bias.map(([id, value]) => [knownToken(Number(id), `logit_bias.${id}`, tokenizer), value] as const),
    seed: fields.seed ?? Math.floor(Math.random() * Number.MAX_SAFE_INTEGER),
  };
}
