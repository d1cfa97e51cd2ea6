import { type Static, type TSchema, Type } from '@sinclair/typebox';
import { anyValue, flag, integer, most, number, oneOf, optional, text } from '../openai/fields.ts';

/**
 * The bodies of POST /api/chat, /api/generate and /api/show. Fields that are null count as absent, and unknown ones are
 * ignored. `keep_alive` is accepted and changes nothing: the model stays loaded.
 */

const jsonObject = (description: string) => Type.Record(Type.String(), Type.Unknown(), { description });

const toolCall = Type.Object(
  {
    id: optional(text()),
    function: Type.Object(
      {
        name: Type.String({ minLength: 1, description: "the tool's name" }),
        arguments: optional(jsonObject('an object')),
      },
      { description: 'an object with name and arguments' },
    ),
  },
  { description: 'a call like {"function": {"name": "...", "arguments": {}}}' },
);

const message = Type.Object(
  {
    role: oneOf('system', 'user', 'assistant', 'tool'),
    content: optional(text()),
    thinking: optional(text()),
    images: anyValue,
    tool_calls: optional(Type.Array(toolCall, { description: 'a list of calls' })),
    tool_name: optional(text()),
    tool_call_id: optional(text()),
  },
  { description: 'an object with role and content' },
);

const tool = Type.Object(
  {
    type: optional(text('"function"')),
    function: Type.Object(
      {
        name: Type.String({ minLength: 1, maxLength: 256, description: 'a name of 1 to 256 characters' }),
        description: optional(text()),
        parameters: optional(jsonObject('a JSON schema')),
      },
      { description: 'an object with name, description and parameters' },
    ),
  },
  { description: 'a tool like {"type": "function", "function": {"name": "...", "parameters": {...}}}' },
);

const stopText = Type.String({ minLength: 1, description: 'a text of at least one character' });

/** What is not named here, like num_ctx or num_gpu, is decided when this server starts. */
const generationSettings = Type.Object(
  {
    num_predict: optional(integer(-2, most, 'a whole number; 0 or less for any')),
    temperature: optional(number(0, 2)),
    top_k: optional(integer(-1, most, 'a whole number of at least 1, or 0 or -1 for none')),
    top_p: optional(number(0, 1)),
    min_p: optional(number(0, 1)),
    repeat_penalty: optional(number(0.01, 10)),
    presence_penalty: optional(number(-2, 2)),
    frequency_penalty: optional(number(-2, 2)),
    seed: optional(integer(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, 'a whole number between -2^53 and 2^53')),
    stop: optional(
      Type.Union([stopText, Type.Array(stopText, { maxItems: 16 })], {
        description: 'a text, or a list of up to 16 texts, of at least one character each',
      }),
    ),
    mirostat: anyValue,
    tfs_z: anyValue,
    typical_p: anyValue,
  },
  { description: 'an object like {"temperature": 0.6}' },
);

const model = text("the model's name");

const shared = {
  model,
  stream: optional(flag),
  options: optional(generationSettings),
  format: optional(
    Type.Union([Type.Literal(''), Type.Literal('json'), Type.Record(Type.String(), Type.Unknown())], {
      description: '"json" or a JSON schema',
    }),
  ),
  think: optional(Type.Union([flag, oneOf('high', 'medium', 'low')], { description: 'true, false or a level' })),
  logprobs: optional(flag),
  top_logprobs: anyValue,
  template: anyValue,
};

const body = <Fields extends Record<string, TSchema>>(fields: Fields) =>
  Type.Object(fields, { description: 'a JSON object' });

export const chatRequest = body({
  ...shared,
  messages: optional(Type.Array(message, { description: 'a list of messages' })),
  tools: optional(Type.Array(tool, { description: 'a list of tools' })),
});

export const generateRequest = body({
  ...shared,
  prompt: optional(text()),
  system: optional(text()),
  raw: optional(flag),
  suffix: anyValue,
  images: anyValue,
  context: anyValue,
});

export const showRequest = body({ model: optional(model), name: optional(model) });

export type ChatBody = Static<typeof chatRequest>;
export type GenerateBody = Static<typeof generateRequest>;
export type ShowBody = Static<typeof showRequest>;
export type RequestMessage = Static<typeof message>;
export type GenerationSettings = Static<typeof generationSettings>;
