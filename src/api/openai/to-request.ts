import { parseExact, spacedJson, toTree } from '../../chat/json.ts';
import type { Conversation, Message, ToolCall } from '../../chat/types.ts';
import { perigeeError } from '../../errors.ts';
import { neutralSampling } from '../../sampling/defaults.ts';
import type { SamplingOptions } from '../../sampling/types.ts';
import type { Tokenizer } from '../../tokenizer/types.ts';
import type { ChatRequest } from '../complete.ts';
import type { ChatCompletionRequest, RequestMessage } from './schema.ts';
import { refuseUnsupported } from './unsupported.ts';
import { brief, fieldInvalid, validateChatRequest } from './validate.ts';

export interface ParsedChatRequest {
  readonly request: ChatRequest;
  /** The model the client asked for, if it named one. */
  readonly model: string | undefined;
  readonly stream: boolean;
  readonly includeUsage: boolean;
}

export interface ToRequestContext {
  readonly tokenizer: Tokenizer;
  /** Sampling for what the request leaves open: the model's recommendation. Its seed is not used. */
  readonly defaults?: SamplingOptions;
}

/** Reads a parsed JSON body. Throws FIELD_INVALID and FIELD_UNSUPPORTED with the field's path as `param`. */
export function toChatRequest(body: unknown, context: ToRequestContext): ParsedChatRequest {
  const fields = validateChatRequest(body);
  refuseUnsupported(fields);
  refuseForcedCalls(fields);
  return {
    model: fields.model,
    stream: fields.stream ?? false,
    includeUsage: fields.stream_options?.include_usage ?? false,
    request: {
      conversation: toConversation(fields),
      sampling: toSampling(fields, context),
      maxTokens: fields.max_completion_tokens ?? fields.max_tokens ?? null,
      stopStrings: typeof fields.stop === 'string' ? [fields.stop] : (fields.stop ?? []),
      stopTokens: (fields.stop_token_ids ?? []).map((id, i) =>
        knownToken(id, `stop_token_ids.${i}`, context.tokenizer),
      ),
      ignoreEndOfTurn: fields.ignore_eos ?? false,
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

function refuseForcedCalls({ tool_choice: choice }: ChatCompletionRequest): void {
  if (choice === undefined || choice === 'auto' || choice === 'none') return;
  const details = {
    field: 'tool_choice',
    value: brief(choice),
    advice: 'Use "auto", and ask for the call in the messages.',
  };
  throw perigeeError('FIELD_UNSUPPORTED', details, { param: 'tool_choice' });
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
  const given = call.function.arguments;
  return {
    id: call.id ?? '',
    name: call.function.name,
    arguments: typeof given === 'string' ? given : spacedJson(toTree(given)),
  };
}

function toSampling(fields: ChatCompletionRequest, { tokenizer, defaults }: ToRequestContext): SamplingOptions {
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

function knownToken(id: number, field: string, { vocabularySize }: Tokenizer): number {
  if (id < vocabularySize) return id;
  throw fieldInvalid(field, `a token id of this model, 0 to ${vocabularySize - 1}`, id);
}
