/** What response_format and tool_choice make of an answer. */
import type { AnswerConstraint, ChatConstraint } from '../complete.ts';
import type { CompletionRequest } from './completion-schema.ts';
import type { ChatCompletionRequest } from './schema.ts';
import { fieldInvalid } from './validate.ts';

type ResponseFormat = NonNullable<CompletionRequest['response_format']>;

/** JSON that the answer's text must be; null: any text. Throws FIELD_INVALID when the schema is missing. */
export function toAnswerConstraint(format: ResponseFormat | undefined): AnswerConstraint | null {
  if (format === undefined || format.type === 'text') return null;
  if (format.type === 'json_object') return { kind: 'json' };
  const schema = format.json_schema?.schema;
  if (schema === undefined) {
    const field =
      format.json_schema === undefined ? 'response_format.json_schema' : 'response_format.json_schema.schema';
    throw fieldInvalid(field, 'an object like {"name": "...", "schema": {...}}', format.json_schema);
  }
  // As with OpenAI only strict promises the whole schema; as with vLLM what can be enforced is, in any case.
  return { kind: 'schema', schema, strict: format.json_schema?.strict === true };
}

/** The same for a chat, where calls may be asked for: these then are the answer, and no text is. */
export function toChatConstraint({
  tool_choice: choice,
  response_format,
}: ChatCompletionRequest): ChatConstraint | null {
  const answer = toAnswerConstraint(response_format);
  if (choice === 'required') return { kind: 'tools' };
  if (typeof choice === 'object') return { kind: 'tools', name: choice.function.name };
  return answer;
}
