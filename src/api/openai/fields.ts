/** What requests to both completion routes have in common. A field's description completes the sentence "'field' must be ...". */
import { type TSchema, Type } from '@sinclair/typebox';

export const number = (least: number, most: number) =>
  Type.Number({ minimum: least, maximum: most, description: `a number from ${least} to ${most}` });
export const integer = (least: number, most: number, description: string) =>
  Type.Integer({ minimum: least, maximum: most, description });
export const text = (description = 'a text') => Type.String({ description });
export const flag = Type.Boolean({ description: 'true or false' });
export const oneOf = (...values: string[]) =>
  Type.Union(
    values.map((value) => Type.Literal(value)),
    { description: `one of ${values.map((value) => JSON.stringify(value)).join(', ')}` },
  );
export const optional = <Schema extends TSchema>(schema: Schema) => Type.Optional(schema);
export const anyValue = optional(Type.Unknown());

/** Ids and counts are 32-bit in the core. */
export const most = 2 ** 31 - 1;
const stopText = Type.String({ minLength: 1, description: 'a text of at least one character' });

/** How the answer is chosen, where it ends, and how it is sent. */
export const sharedFields = {
  model: optional(text("the model's name")),
  stream: optional(flag),
  stream_options: optional(
    Type.Object(
      { include_usage: optional(flag), continuous_usage_stats: optional(flag) },
      { description: 'an object like {"include_usage": true}' },
    ),
  ),
  n: optional(integer(1, 16, 'a whole number from 1 to 16')),

  stop: optional(
    Type.Union([stopText, Type.Array(stopText, { maxItems: 16 })], {
      description: 'a text, or a list of up to 16 texts, of at least one character each',
    }),
  ),
  stop_token_ids: optional(
    Type.Array(integer(0, most, 'a token id'), { maxItems: 64, description: 'a list of up to 64 token ids' }),
  ),
  ignore_eos: optional(flag),
  min_tokens: optional(integer(0, most, 'a whole number of at least 0')),

  temperature: optional(number(0, 2)),
  top_p: optional(number(0, 1)),
  top_k: optional(integer(-1, most, 'a whole number of at least 1, or 0 or -1 for none')),
  min_p: optional(number(0, 1)),
  repetition_penalty: optional(number(0.01, 10)),
  presence_penalty: optional(number(-2, 2)),
  frequency_penalty: optional(number(-2, 2)),
  logit_bias: optional(
    Type.Record(Type.String({ pattern: '^[0-9]{1,9}$' }), number(-100, 100), {
      additionalProperties: false,
      description: 'an object of token ids, each with a number from -100 to 100',
    }),
  ),
  seed: optional(integer(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, 'a whole number between -2^53 and 2^53')),
  return_tokens_as_token_ids: optional(flag),
  response_format: optional(
    Type.Object(
      {
        type: oneOf('text', 'json_object', 'json_schema', 'structural_tag'),
        json_schema: optional(
          Type.Object(
            {
              name: optional(text("the schema's name")),
              // true and false are schemas as well.
              schema: optional(
                Type.Union([Type.Record(Type.String(), Type.Unknown()), Type.Boolean()], {
                  description: 'a JSON schema',
                }),
              ),
              strict: optional(Type.Union([flag, Type.Null()], { description: 'true or false' })),
            },
            { description: 'an object like {"name": "...", "schema": {...}}' },
          ),
        ),
      },
      { description: 'an object like {"type": "text"}' },
    ),
  ),

  // Other servers act on these; unsupported.ts says which values ask for nothing.
  prompt_logprobs: anyValue,
  structured_outputs: anyValue,
  include_stop_str_in_output: optional(flag),
  bad_words: optional(Type.Array(text(), { description: 'a list of texts' })),
  allowed_token_ids: anyValue,
  skip_special_tokens: optional(flag),
  truncate_prompt_tokens: anyValue,
  return_token_ids: optional(flag),
  use_beam_search: optional(flag),
  kv_transfer_params: anyValue,

  // Accepted, and without effect here: bookkeeping of clients and of other servers. No token is added to a prompt, as no
  // vocabulary of this family asks for one.
  user: anyValue,
  metadata: anyValue,
  store: anyValue,
  service_tier: anyValue,
  priority: anyValue,
  request_id: anyValue,
  cache_salt: anyValue,
  spaces_between_special_tokens: anyValue,
  add_special_tokens: anyValue,
  length_penalty: anyValue,
  vllm_xargs: anyValue,
};
