import { type Static, type TSchema, Type } from '@sinclair/typebox';

/**
 * The body of POST /v1/chat/completions. A field's description completes the sentence "'field' must be ...". Fields that are
 * null count as absent, unknown fields are ignored, and what each known one may hold today is in unsupported.ts.
 */

const number = (least: number, most: number) =>
  Type.Number({ minimum: least, maximum: most, description: `a number from ${least} to ${most}` });
const integer = (least: number, most: number, description: string) =>
  Type.Integer({ minimum: least, maximum: most, description });
const text = (description = 'a text') => Type.String({ description });
const flag = Type.Boolean({ description: 'true or false' });
const oneOf = (...values: string[]) =>
  Type.Union(
    values.map((value) => Type.Literal(value)),
    { description: `one of ${values.map((value) => JSON.stringify(value)).join(', ')}` },
  );
const optional = <Schema extends TSchema>(schema: Schema) => Type.Optional(schema);
const anyValue = optional(Type.Unknown());

const contentPart = Type.Object(
  { type: text('the kind of the part, "text"'), text: optional(text()) },
  { description: 'a part like {"type": "text", "text": "..."}' },
);

const toolCall = Type.Object(
  {
    id: optional(text()),
    type: optional(oneOf('function')),
    function: Type.Object(
      {
        name: Type.String({ minLength: 1, description: "the function's name" }),
        // Some clients send the object itself.
        arguments: Type.Union([Type.String(), Type.Record(Type.String(), Type.Unknown())], {
          description: 'a text that holds JSON',
        }),
      },
      { description: 'an object with name and arguments' },
    ),
  },
  { description: 'a tool call like {"id": "...", "type": "function", "function": {"name": "...", "arguments": "{}"}}' },
);

const message = Type.Object(
  {
    role: oneOf('system', 'developer', 'user', 'assistant', 'tool'),
    content: optional(
      Type.Union([Type.String(), Type.Array(contentPart)], { description: 'a text or a list of parts' }),
    ),
    name: optional(text()),
    reasoning_content: optional(text()),
    reasoning: optional(text()),
    tool_calls: optional(Type.Array(toolCall, { description: 'a list of tool calls' })),
    tool_call_id: optional(text()),
  },
  { description: 'an object with role and content' },
);

const tool = Type.Object(
  {
    type: oneOf('function'),
    function: Type.Object(
      {
        name: Type.String({ minLength: 1, maxLength: 256, description: 'a name of 1 to 256 characters' }),
        description: optional(Type.Union([Type.String(), Type.Null()], { description: 'a text' })),
        parameters: optional(
          Type.Union([Type.Record(Type.String(), Type.Unknown()), Type.Null()], { description: 'a JSON schema' }),
        ),
      },
      { description: 'an object with name, description and parameters' },
    ),
  },
  { description: 'a tool like {"type": "function", "function": {"name": "...", "parameters": {...}}}' },
);

const stopText = Type.String({ minLength: 1, description: 'a text of at least one character' });

export const chatCompletionRequest = Type.Object(
  {
    model: optional(text("the model's name")),
    messages: Type.Array(message, { minItems: 1, description: 'a list of at least one message' }),
    stream: optional(flag),
    stream_options: optional(
      Type.Object(
        { include_usage: optional(flag), continuous_usage_stats: optional(flag) },
        { description: 'an object like {"include_usage": true}' },
      ),
    ),

    max_tokens: optional(integer(1, 2 ** 31 - 1, 'a whole number of at least 1')),
    max_completion_tokens: optional(integer(1, 2 ** 31 - 1, 'a whole number of at least 1')),
    stop: optional(
      Type.Union([stopText, Type.Array(stopText, { maxItems: 16 })], {
        description: 'a text, or a list of up to 16 texts, of at least one character each',
      }),
    ),
    stop_token_ids: optional(
      Type.Array(integer(0, 2 ** 31 - 1, 'a token id'), { maxItems: 64, description: 'a list of up to 64 token ids' }),
    ),
    ignore_eos: optional(flag),

    temperature: optional(number(0, 2)),
    top_p: optional(number(0, 1)),
    top_k: optional(integer(-1, 2 ** 31 - 1, 'a whole number of at least 1, or 0 or -1 for none')),
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

    tools: optional(Type.Array(tool, { description: 'a list of tools' })),
    tool_choice: optional(
      Type.Union(
        [
          oneOf('none', 'auto', 'required'),
          Type.Object({ type: Type.Literal('function'), function: Type.Object({ name: Type.String() }) }),
        ],
        { description: '"none", "auto", "required" or {"type": "function", "function": {"name": "..."}}' },
      ),
    ),
    parallel_tool_calls: optional(flag),
    chat_template_kwargs: optional(
      Type.Record(Type.String(), Type.Unknown(), { description: 'an object of template variables' }),
    ),
    reasoning_effort: optional(text()),
    thinking: optional(
      Type.Object(
        { type: oneOf('enabled', 'disabled') },
        { description: '{"type": "enabled"} or {"type": "disabled"}' },
      ),
    ),

    n: optional(integer(1, 16, 'a whole number from 1 to 16')),
    logprobs: optional(flag),
    top_logprobs: optional(integer(-1, 20, 'a whole number from 0 to 20')),
    prompt_logprobs: anyValue,
    response_format: optional(
      Type.Object(
        { type: oneOf('text', 'json_object', 'json_schema', 'structural_tag') },
        { description: 'an object like {"type": "text"}' },
      ),
    ),
    structured_outputs: anyValue,
    functions: anyValue,
    function_call: anyValue,
    modalities: anyValue,
    audio: anyValue,
    min_tokens: optional(integer(0, 2 ** 31 - 1, 'a whole number of at least 0')),
    include_stop_str_in_output: optional(flag),
    bad_words: optional(Type.Array(text(), { description: 'a list of texts' })),
    allowed_token_ids: anyValue,
    skip_special_tokens: optional(flag),
    truncate_prompt_tokens: anyValue,
    return_token_ids: optional(flag),
    include_reasoning: optional(flag),
    chat_template: anyValue,
    add_generation_prompt: optional(flag),
    continue_final_message: optional(flag),
    echo: optional(flag),
    documents: anyValue,
    use_beam_search: optional(flag),
    kv_transfer_params: anyValue,

    // Accepted, and without effect here: bookkeeping of clients and of other servers.
    user: anyValue,
    metadata: anyValue,
    store: anyValue,
    service_tier: anyValue,
    priority: anyValue,
    request_id: anyValue,
    cache_salt: anyValue,
    spaces_between_special_tokens: anyValue,
    add_special_tokens: anyValue,
    return_tokens_as_token_ids: anyValue,
    length_penalty: anyValue,
    vllm_xargs: anyValue,
  },
  { description: 'a JSON object' },
);

export type ChatCompletionRequest = Static<typeof chatCompletionRequest>;
export type RequestMessage = Static<typeof message>;
