import { parseExact, spacedJson, toTree } from '../../chat/json.ts';
import type { Conversation, Message, ToolCall } from '../../chat/types.ts';
import { perigeeError } from '../../errors.ts';
import type { ChatRequest } from '../complete.ts';
import { toChatConstraint } from './constraint.ts';
import { generationOptions, type ToRequestContext } from './generation-options.ts';
import type { ChatCompletionRequest, RequestMessage } from './schema.ts';
import { refuseUnsupportedChat } from './unsupported.ts';
import { brief, fieldInvalid, validateChatRequest } from './validate.ts';

export interface ParsedChatRequest {
  readonly request: ChatRequest;
  /** The model the client asked for, if it named one. */
  readonly model: string | undefined;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  /** How many answers to give. */
  readonly choices: number;
  /** Tokens are shown as "token_id:17". */
  readonly tokensAsIds: boolean;
}

/** Reads a parsed JSON body. Throws FIELD_INVALID and FIELD_UNSUPPORTED with the field's path as `param`. */
export function toChatRequest(body: unknown, context: ToRequestContext): ParsedChatRequest {
  const fields = validateChatRequest(body);
  refuseUnsupportedChat(fields);
  return {
    model: fields.model,
    stream: fields.stream ?? false,
    includeUsage: fields.stream_options?.include_usage ?? false,
    choices: fields.n ?? 1,
    tokensAsIds: fields.return_tokens_as_token_ids ?? false,
    request: {
      conversation: toConversation(fields),
      ...generationOptions(fields, context),
      maxTokens: fields.max_completion_tokens ?? fields.max_tokens ?? null,
      ...(fields.logprobs === true && { topLogprobs: fields.top_logprobs ?? 0 }),
      constraint: toChatConstraint(fields),
      toolCalls: fields.tool_choice !== 'none',
      parallelToolCalls: fields.parallel_tool_calls ?? true,
    },
  };
}

/**
 * `body`, parsed from `text`, with the numbers in its tools as Python would print them: 1.0 stays 1.0 in the prompt, as in the
 * model's training. The second parse, with its source texts, is only done where such a number may be. Parse limits (depth,
 * forbidden keys) are the caller's, before this.
 */
export function withExactTools(body: unknown, text: string): unknown {
  if (!hasTools(body) || !/[:,[]\s*-?(?:\d*\.?\d+[eE]|\d+\.\d*0(?!\d)|\d{16,}|\d+\.\d{15,}|0\.000)/.test(text))
    return body;
  return { ...body, tools: (parseExact(text) as { tools: unknown }).tools };
}

function hasTools(body: unknown): body is { tools: unknown } {
  return typeof body === 'object' && body !== null && Array.isArray((body as { tools?: unknown }).tools);
}

function toConversation(fields: ChatCompletionRequest): Conversation {
  return {
    messages: fields.messages.map(toMessage),
    tools: (fields.tools ?? []).map((tool) => ({ name: tool.function.name, declaration: tool })),
    templateOptions: {
      ...(fields.reasoning_effort === undefined ? {} : { reasoning_effort: fields.reasoning_effort }),
      ...(fields.thinking === undefined ? {} : { thinking: fields.thinking.type === 'enabled' }),
      ...fields.chat_template_kwargs,
    },
  };
}

function toMessage(message: RequestMessage, index: number): Message {
  const reasoning = message.reasoning_content ?? message.reasoning;
  return {
    role: message.role === 'developer' ? 'system' : message.role,
    content: toContent(message, index),
    ...(message.name === undefined ? {} : { name: message.name }),
    ...(reasoning === undefined ? {} : { reasoning }),
    ...(message.tool_call_id === undefined ? {} : { toolCallId: message.tool_call_id }),
    ...(message.tool_calls === undefined ? {} : { toolCalls: message.tool_calls.map(toToolCall) }),
  };
}

/** The text parts in a row, without separators, as Kimi's template prints them. */
function toContent({ content }: RequestMessage, index: number): string | null {
  if (content === undefined) return null;
  if (typeof content === 'string') return content;
  return content
    .map((part, i) => {
      const field = `messages.${index}.content.${i}`;
      if (part.type !== 'text') {
        const details = { field: `${field}.type`, value: brief(part.type), advice: 'This model reads text only.' };
        throw perigeeError('FIELD_UNSUPPORTED', details, { param: `${field}.type` });
      }
      if (part.text === undefined) throw fieldInvalid(`${field}.text`, 'a text', undefined);
      return part.text;
    })
    .join('');
}

function toToolCall(call: NonNullable<RequestMessage['tool_calls']>[number]): ToolCall {
  const given = call.function.arguments ?? {};
  return {
    id: call.id ?? '',
    name: call.function.name,
    arguments: typeof given === 'string' ? given : spacedJson(toTree(given)),
  };
}
