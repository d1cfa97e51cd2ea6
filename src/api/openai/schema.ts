import { type Static, Type } from '@sinclair/typebox';
import { anyValue, flag, integer, most, oneOf, optional, sharedFields, text } from './fields.ts';

/**
 * The body of POST /v1/chat/completions. Fields that are null count as absent, unknown fields are ignored, and what each known
 * one may hold today is in unsupported.ts.
 */

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
        // Some clients send the object itself, or nothing where a function takes nothing.
        arguments: optional(
          Type.Union([Type.String(), Type.Record(Type.String(), Type.Unknown())], {
            description: 'a text that holds JSON',
          }),
        ),
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

export const chatCompletionRequest = Type.Object(
  {
    ...sharedFields,
    messages: Type.Array(message, { minItems: 1, description: 'a list of at least one message' }),
    max_tokens: optional(integer(1, most, 'a whole number of at least 1')),
    max_completion_tokens: optional(integer(1, most, 'a whole number of at least 1')),
    logprobs: optional(flag),
    top_logprobs: optional(integer(0, 20, 'a whole number from 0 to 20')),

    tools: optional(Type.Array(tool, { description: 'a list of tools' })),
    tool_choice: optional(
      Type.Union(
        [
          oneOf('none', 'auto', 'required'),
          Type.Object({
            type: oneOf('function'),
            function: Type.Object(
              { name: text("the name of one of 'tools'") },
              { description: 'an object like {"name": "..."}' },
            ),
          }),
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

    functions: anyValue,
    function_call: anyValue,
    modalities: anyValue,
    audio: anyValue,
    include_reasoning: optional(flag),
    chat_template: anyValue,
    add_generation_prompt: optional(flag),
    continue_final_message: optional(flag),
    echo: optional(flag),
    documents: anyValue,
  },
  { description: 'a JSON object' },
);

export type ChatCompletionRequest = Static<typeof chatCompletionRequest>;
export type RequestMessage = Static<typeof message>;
