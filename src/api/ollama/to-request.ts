import { spacedJson, toTree } from '../../chat/json.ts';
import type { Conversation, Message, ToolCall } from '../../chat/types.ts';
import { perigeeError } from '../../errors.ts';
import type { AnswerConstraint, ChatRequest } from '../complete.ts';
import type { TextRequest } from '../complete-text.ts';
import { type GenerationOptions, generationOptions, type ToRequestContext } from '../openai/generation-options.ts';
import { brief, fieldInvalid, validated, withoutNulls } from '../openai/validate.ts';
import {
  type ChatBody,
  chatRequest,
  type GenerateBody,
  type GenerationSettings,
  generateRequest,
  type RequestMessage,
  type ShowBody,
  showRequest,
} from './schema.ts';

/** What to do: answer a chat, go on with a text as it is, or nothing, as clients ask in order to load a model. */
export type Wanted =
  | { readonly kind: 'chat'; readonly request: ChatRequest }
  | { readonly kind: 'text'; readonly request: Omit<TextRequest, 'maxTokens'> & { readonly maxTokens: number | null } }
  | { readonly kind: 'load' };

export interface ParsedRequest {
  readonly model: string;
  readonly stream: boolean;
  readonly wanted: Wanted;
}

/** Reads the body of POST /api/chat. Throws FIELD_INVALID and FIELD_UNSUPPORTED. */
export function toChat(body: unknown, context: ToRequestContext): ParsedRequest {
  const fields = validated(chatRequest, withoutNullOptions(body));
  refuseUnsupported(fields);
  const { messages = [], tools = [] } = fields;
  const conversation: Conversation = {
    messages: messages.map(toMessage),
    tools: tools.map(({ function: declared }) => {
      return { name: declared.name, declaration: { type: 'function', function: declared } };
    }),
    templateOptions: templateOptions(fields),
  };
  return parsed(fields, messages.length === 0 ? { kind: 'load' } : toAnswer(fields, conversation, context));
}

/** Reads the body of POST /api/generate. Throws FIELD_INVALID and FIELD_UNSUPPORTED. */
export function toGenerate(body: unknown, context: ToRequestContext): ParsedRequest {
  const fields = validated(generateRequest, withoutNullOptions(body));
  refuseUnsupported(fields);
  const { prompt = '', system = '', raw = false } = fields;
  if (prompt === '') return parsed(fields, { kind: 'load' });
  if (raw) {
    // A raw prompt brings its own template, and that template its control tokens.
    const ids = context.tokenizer.encode(prompt, { specials: true });
    const generation = settings(fields, context);
    const request = { ...generation, prompt: ids, promptLogprobs: false, constraint: constraintOf(fields) };
    return parsed(fields, { kind: 'text', request });
  }
  const messages: Message[] = [
    ...(system === '' ? [] : [{ role: 'system', content: system }]),
    { role: 'user', content: prompt },
  ];
  const conversation = { messages, tools: [], templateOptions: templateOptions(fields) };
  return parsed(fields, toAnswer(fields, conversation, context));
}

/** Reads the body of POST /api/show: the model's name, under its newer or its older key. */
export function toShow(body: unknown): string {
  const fields: ShowBody = validated(showRequest, withoutNulls(body));
  const name = fields.model ?? fields.name;
  if (name === undefined) throw fieldInvalid('model', "the model's name", undefined);
  return withoutTag(name);
}

function parsed({ model, stream = true }: ChatBody | GenerateBody, wanted: Wanted): ParsedRequest {
  return { model: withoutTag(model), stream, wanted };
}

/** Ollama's clients say "nano:latest" for "nano". */
function withoutTag(name: string): string {
  return name.replace(/:latest$/, '');
}

function toAnswer(fields: ChatBody | GenerateBody, conversation: Conversation, context: ToRequestContext): Wanted {
  const generation = settings(fields, context);
  const constraint = constraintOf(fields);
  return {
    kind: 'chat',
    request: { conversation, ...generation, constraint, toolCalls: true, parallelToolCalls: true },
  };
}

function settings(
  { options = {} }: ChatBody | GenerateBody,
  context: ToRequestContext,
): GenerationOptions & { readonly maxTokens: number | null } {
  const { num_predict = -1, repeat_penalty, temperature, top_k, top_p, min_p, seed, stop } = options;
  const { presence_penalty, frequency_penalty } = options;
  const renamed = { temperature, top_k, top_p, min_p, seed, stop, presence_penalty, frequency_penalty };
  const given = { ...renamed, repetition_penalty: repeat_penalty };
  const present = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  return { ...generationOptions(present, context), maxTokens: num_predict > 0 ? num_predict : null };
}

function constraintOf({ format = '' }: ChatBody | GenerateBody): AnswerConstraint | null {
  if (format === '') return null;
  return format === 'json' ? { kind: 'json' } : { kind: 'schema', schema: format };
}

function templateOptions({ think }: ChatBody | GenerateBody): Record<string, unknown> {
  if (think === undefined) return {};
  return { thinking: think !== false, ...(typeof think === 'string' && { reasoning_effort: think }) };
}

/** Calls and results find each other by the tool's name where clients send no ids, which Ollama does not have. */
function toMessage(message: RequestMessage, index: number): Message {
  refuseImages(message.images, `messages.${index}.images`);
  const callId = message.tool_call_id ?? message.tool_name;
  return {
    role: message.role,
    content: message.content ?? null,
    ...(message.thinking !== undefined && { reasoning: message.thinking }),
    ...(message.tool_calls !== undefined && { toolCalls: message.tool_calls.map(toCall) }),
    ...(callId !== undefined && { toolCallId: callId }),
  };
}

function toCall({ id, function: called }: NonNullable<RequestMessage['tool_calls']>[number]): ToolCall {
  return { id: id ?? called.name, name: called.name, arguments: spacedJson(toTree(called.arguments ?? {})) };
}

const nothing: readonly unknown[] = [undefined, '', false];
const isEmpty = (value: unknown) => nothing.includes(value) || (Array.isArray(value) && value.length === 0);

function refuseImages(value: unknown, field: string): void {
  if (!isEmpty(value)) throw unsupported(field, 'images', 'This model reads text only.');
}

/** Fields and options under which the answer would be another: ignoring them would not be seen. */
function refuseUnsupported(fields: ChatBody & GenerateBody): void {
  refuseImages(fields.images, 'images');
  const advice = {
    template: "The model's own template is used; with 'raw' a prompt brings its own.",
    suffix: 'This model continues texts; it does not fill gaps.',
    context: 'Send the conversation to POST /api/chat.',
    logprobs: 'POST /v1/chat/completions has them.',
    top_logprobs: 'POST /v1/chat/completions has them.',
  } as const;
  for (const [field, say] of Object.entries(advice)) {
    const value = fields[field as keyof typeof advice];
    if (!isEmpty(value) && value !== 0) throw unsupported(field, brief(value), say);
  }
  const neutral: Partial<Record<keyof GenerationSettings, readonly unknown[]>> = {
    mirostat: [0],
    tfs_z: [1],
    typical_p: [0, 1],
  };
  for (const [name, values] of Object.entries(neutral)) {
    const value = fields.options?.[name as keyof GenerationSettings];
    if (value !== undefined && !values.includes(value)) {
      throw unsupported(`options.${name}`, brief(value), "Use 'top_p' or 'min_p'.");
    }
  }
}

function unsupported(field: string, value: string, advice: string) {
  return perigeeError('FIELD_UNSUPPORTED', { field, value, advice }, { param: field });
}

function withoutNullOptions(body: unknown): unknown {
  const top = withoutNulls(body) as Record<string, unknown>;
  return 'options' in top ? { ...top, options: withoutNulls(top.options) } : top;
}
