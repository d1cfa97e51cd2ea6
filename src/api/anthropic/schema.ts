import { type Static, Type } from '@sinclair/typebox';
import { anyValue, flag, integer, most, number, oneOf, optional, text } from '../openai/fields.ts';

/**
 * The body of POST /v1/messages. Fields that are null count as absent, and unknown fields are ignored: clients send betas and
 * caching hints (`cache_control`) everywhere, and here every prompt is cached without being asked. What a block of a known
 * kind may hold is checked in content.ts.
 */

const textBlock = Type.Object(
  { type: text('the kind of the block, "text"'), text: optional(text()) },
  { description: 'a block like {"type": "text", "text": "..."}' },
);

const texts = Type.Union([Type.String(), Type.Array(textBlock)], { description: 'a text or a list of text blocks' });

const jsonObject = (description: string) => Type.Record(Type.String(), Type.Unknown(), { description });

const block = Type.Object(
  {
    type: text('the kind of the block, like "text"'),
    text: optional(text()),
    thinking: optional(text()),
    id: optional(text()),
    name: optional(Type.String({ minLength: 1, description: "the tool's name" })),
    input: optional(jsonObject("an object, the tool's input")),
    tool_use_id: optional(text()),
    content: optional(texts),
    is_error: optional(flag),
  },
  { description: 'a block like {"type": "text", "text": "..."}' },
);

const message = Type.Object(
  {
    role: oneOf('user', 'assistant', 'system'),
    content: Type.Union([Type.String(), Type.Array(block)], { description: 'a text or a list of blocks' }),
  },
  { description: 'an object with role and content' },
);

const tool = Type.Object(
  {
    type: optional(text('"custom"')),
    name: Type.String({ minLength: 1, maxLength: 256, description: 'a name of 1 to 256 characters' }),
    description: optional(text()),
    input_schema: optional(jsonObject('a JSON schema')),
    strict: optional(flag),
  },
  { description: 'a tool like {"name": "...", "input_schema": {...}}' },
);

const jsonFormat = Type.Object(
  { type: oneOf('json_schema'), schema: jsonObject('a JSON schema') },
  { description: 'an object like {"type": "json_schema", "schema": {...}}' },
);

/** What counting tokens looks at: whatever becomes part of the prompt. */
const promptFields = {
  model: text("the model's name"),
  messages: Type.Array(message, { minItems: 1, description: 'a list of at least one message' }),
  system: optional(texts),
  tools: optional(Type.Array(tool, { description: 'a list of tools' })),
  tool_choice: optional(
    Type.Object(
      {
        type: oneOf('auto', 'any', 'tool', 'none'),
        name: optional(text()),
        disable_parallel_tool_use: optional(flag),
      },
      { description: 'an object like {"type": "auto"}' },
    ),
  ),
  thinking: optional(
    // A budget is not kept: nothing makes this model end its thoughts early. max_tokens bounds thoughts and answer together.
    Type.Object(
      { type: oneOf('enabled', 'disabled', 'adaptive'), budget_tokens: anyValue },
      { description: 'an object like {"type": "enabled", "budget_tokens": 2048}' },
    ),
  ),
  output_config: optional(
    Type.Object(
      { format: optional(Type.Union([jsonFormat, Type.Null()])), effort: anyValue },
      { description: 'an object like {"format": {"type": "json_schema", "schema": {...}}}' },
    ),
  ),
  /** The older name of output_config.format. */
  output_format: optional(jsonFormat),
  mcp_servers: anyValue,
  container: anyValue,
};

export const countTokensRequest = Type.Object(promptFields, { description: 'a JSON object' });

export const messagesRequest = Type.Object(
  {
    ...promptFields,
    max_tokens: integer(1, most, 'a whole number of at least 1'),
    stop_sequences: optional(
      Type.Array(Type.String({ minLength: 1, description: 'a text of at least one character' }), {
        maxItems: 16,
        description: 'a list of up to 16 texts of at least one character each',
      }),
    ),
    stream: optional(flag),
    temperature: optional(number(0, 1)),
    top_p: optional(number(0, 1)),
    top_k: optional(integer(0, most, 'a whole number of at least 0')),

    // Bookkeeping, without effect on the answer.
    metadata: anyValue,
    service_tier: anyValue,
  },
  { description: 'a JSON object' },
);

export type MessagesRequest = Static<typeof messagesRequest>;
export type CountTokensRequest = Static<typeof countTokensRequest>;
export type RequestMessage = Static<typeof message>;
export type Block = Static<typeof block>;
export type Texts = Static<typeof texts>;
