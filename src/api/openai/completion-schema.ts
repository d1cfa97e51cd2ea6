import { type Static, Type } from '@sinclair/typebox';
import { anyValue, flag, integer, most, optional, sharedFields, text } from './fields.ts';

const tokenIds = Type.Array(integer(0, most, 'a token id'), { minItems: 1, description: 'a list of token ids' });
/** Answers are generated a few at a time, so this bounds a request's length and not its share of the engine. */
const mostPrompts = 1024;
const several = { minItems: 1, maxItems: mostPrompts };

/** The body of POST /v1/completions. Null counts as absent, unknown fields are ignored; see also unsupported.ts. */
export const completionRequest = Type.Object(
  {
    ...sharedFields,
    prompt: Type.Union([text(), tokenIds, Type.Array(text(), several), Type.Array(tokenIds, several)], {
      description: `a text, a list of token ids, or a list of up to ${mostPrompts} of either`,
    }),
    max_tokens: optional(integer(0, most, 'a whole number of at least 0')),
    echo: optional(flag),
    logprobs: optional(integer(0, 20, 'a whole number from 0 to 20')),
    best_of: optional(integer(1, 16, 'a whole number from 1 to 16')),
    suffix: optional(text()),
    prompt_embeds: anyValue,
  },
  { description: 'a JSON object' },
);

export type CompletionRequest = Static<typeof completionRequest>;
