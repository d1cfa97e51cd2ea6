import type { Static, TSchema } from '@sinclair/typebox';
import { Errors, type ValueError, type ValueErrorIterator } from '@sinclair/typebox/errors';
import { type PerigeeError, perigeeError } from '../../errors.ts';
import { type CompletionRequest, completionRequest } from './completion-schema.ts';
import { type ChatCompletionRequest, chatCompletionRequest } from './schema.ts';

/** The body as a chat request. Throws FIELD_INVALID, which names the field, what it must be and what it is. */
export function validateChatRequest(body: unknown): ChatCompletionRequest {
  const request = validated(chatCompletionRequest, withoutNulls(body));
  checkStreamOptions(request);
  checkTogether(request);
  return request;
}

/** The body as a request to continue texts. Throws FIELD_INVALID. */
export function validateCompletionRequest(body: unknown): CompletionRequest {
  const request = validated(completionRequest, withoutNulls(body));
  checkStreamOptions(request);
  return request;
}

/** `request` as `schema` has it. Throws FIELD_INVALID for what differs. */
export function validated<Schema extends TSchema>(schema: Schema, request: unknown): Static<Schema> {
  const error = deepest(Errors(schema, request));
  if (error === undefined) return request as Static<Schema>;
  throw fieldInvalid(fieldOf(error.path), error.schema.description ?? 'different', error.value);
}

/** The error for one field; `field` is its path, "messages.0.content". */
export function fieldInvalid(field: string, expected: string, value: unknown): PerigeeError {
  const name = field || 'the request body';
  return perigeeError('FIELD_INVALID', { field: name, expected, found: brief(value) }, { param: field || undefined });
}

/** A value for people, in at most a line. */
export function brief(value: unknown): string {
  if (value === undefined) return 'missing';
  const text = JSON.stringify(value) ?? typeof value;
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** Where null means absent beside the top. In schemas, tools and arguments it is data. */
interface Nullable {
  readonly [field: string]: Nullable;
}
const nullable: Nullable = {
  stream_options: {},
  response_format: {},
  // Content null is the same as none.
  messages: { tool_calls: { function: {} } },
};

/** The body without what is null and means absent. */
export function withoutNulls(body: unknown, fields: Nullable = nullable): unknown {
  if (Array.isArray(body)) return body.map((item: unknown) => withoutNulls(item, fields));
  if (!isObject(body)) return body;
  const entries = Object.entries(body).filter(([, item]) => item !== null);
  return Object.fromEntries(
    entries.map(([name, item]) => {
      const inner = Object.hasOwn(fields, name) ? fields[name] : undefined;
      return [name, inner === undefined ? item : withoutNulls(item, inner)];
    }),
  );
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The first error, or inside a union the one that got furthest: it belongs to the variant that was meant. */
function deepest(errors: ValueErrorIterator): ValueError | undefined {
  const first = errors.First();
  if (first === undefined) return undefined;
  const inner = first.errors.flatMap((variant) => deepest(variant) ?? []);
  const depth = (error: ValueError) => error.path.split('/').length;
  return inner.reduce((best, error) => (depth(error) > depth(best) ? error : best), first);
}

function fieldOf(path: string): string {
  return path
    .split('/')
    .slice(1)
    .map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'))
    .join('.');
}

function checkStreamOptions(request: ChatCompletionRequest | CompletionRequest): void {
  if (request.stream_options !== undefined && request.stream !== true) {
    throw fieldInvalid('stream_options', "left out unless 'stream' is true", request.stream_options);
  }
}

/** Rules between fields of a chat. */
function checkTogether(request: ChatCompletionRequest): void {
  if ((request.top_logprobs ?? 0) > 0 && request.logprobs !== true) {
    throw fieldInvalid('top_logprobs', "left out unless 'logprobs' is true", request.top_logprobs);
  }
  const choice = request.tool_choice;
  const tools = request.tools ?? [];
  if (choice === 'required' && tools.length === 0) {
    throw fieldInvalid('tool_choice', '"auto" or "none" without \'tools\'', choice);
  }
  if (typeof choice === 'object' && !tools.some((tool) => tool.function.name === choice.function.name)) {
    throw fieldInvalid('tool_choice.function.name', "the name of one of 'tools'", choice.function.name);
  }
  request.messages.forEach((message, i) => {
    const mayBeSilent = message.role === 'assistant' || message.role === 'tool';
    if (message.content === undefined && !mayBeSilent) {
      throw fieldInvalid(`messages.${i}.content`, 'a text or a list of parts', undefined);
    }
    if (message.tool_calls !== undefined && message.role !== 'assistant') {
      throw fieldInvalid(`messages.${i}.tool_calls`, 'left out unless \'role\' is "assistant"', message.tool_calls);
    }
  });
}
