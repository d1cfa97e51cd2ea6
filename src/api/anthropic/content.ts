/** Messages of blocks, as the model's template knows them: turns of text, calls, and one turn for each call's result. */
import { spacedJson, toTree } from '../../chat/json.ts';
import type { Message, ToolCall } from '../../chat/types.ts';
import { type PerigeeError, perigeeError } from '../../errors.ts';
import { brief, fieldInvalid } from '../openai/validate.ts';
import type { Block, RequestMessage, Texts } from './schema.ts';

/**
 * Claude Code's accounting: it differs with every request and stands in front of everything, so that no two prompts would
 * begin alike and none be found in the cache.
 */
const billingHeader = 'x-anthropic-billing-header';

/** The system prompt as a message; none if it says nothing. */
export function systemMessage(system: Texts | undefined): readonly Message[] {
  if (system === undefined) return [];
  const wanted =
    typeof system === 'string' ? system : system.filter(({ text }) => text?.startsWith(billingHeader) !== true);
  const content = textOf(wanted, 'system');
  return content === '' ? [] : [{ role: 'system', content }];
}

/** Results of tools become messages of their own, before the text beside them. Throws FIELD_INVALID, FIELD_UNSUPPORTED. */
export function toMessages({ role, content }: RequestMessage, index: number): readonly Message[] {
  if (typeof content === 'string') return [{ role, content }];
  const field = (i: number) => `messages.${index}.content.${i}`;
  for (const [i, { type }] of content.entries()) checkKind(type, role, field(i));
  const results = content.flatMap((block, i) => (block.type === 'tool_result' ? [toResult(block, field(i))] : []));
  const calls = content.flatMap((block, i) => (block.type === 'tool_use' ? [toCall(block, field(i))] : []));
  const said = content.flatMap((block, i) => (block.type === 'text' ? [required(block.text, `${field(i)}.text`)] : []));
  const thoughts = content.flatMap((block) => (block.type === 'thinking' ? (block.thinking ?? []) : []));
  if (said.length + calls.length + thoughts.length === 0 && results.length > 0) return results;
  return [
    ...results,
    {
      role,
      content: said.join('\n'),
      ...(thoughts.length > 0 && { reasoning: thoughts.join('\n') }),
      ...(calls.length > 0 && { toolCalls: calls }),
    },
  ];
}

/** Blocks each role may send. redacted_thinking holds nothing that another model could read, so it is passed over. */
const kinds: Readonly<Record<string, readonly string[]>> = {
  user: ['text', 'tool_result'],
  assistant: ['text', 'thinking', 'redacted_thinking', 'tool_use'],
  system: ['text'],
};
const allKinds = Object.values(kinds).flat();

function checkKind(type: string, role: string, field: string): void {
  const allowed = kinds[role] ?? [];
  if (allowed.includes(type)) return;
  if (!allKinds.includes(type)) throw unsupportedBlock(type, field);
  const list = allowed.map((kind) => JSON.stringify(kind)).join(', ');
  throw fieldInvalid(`${field}.type`, `one of ${list} in a message of role '${role}'`, type);
}

function unsupportedBlock(type: string, field: string): PerigeeError {
  const details = {
    field: `${field}.type`,
    value: brief(type),
    advice: 'This model reads text and tool results only.',
  };
  return perigeeError('FIELD_UNSUPPORTED', details, { param: `${field}.type` });
}

function toResult(block: Block, field: string): Message {
  const text = textOf(block.content ?? '', `${field}.content`);
  return {
    role: 'tool',
    // The template has no place for failure but the text.
    content: block.is_error === true ? `Error: ${text}` : text,
    toolCallId: required(block.tool_use_id, `${field}.tool_use_id`),
  };
}

function toCall(block: Block, field: string): ToolCall {
  return {
    id: required(block.id, `${field}.id`),
    name: required(block.name, `${field}.name`),
    arguments: spacedJson(toTree(block.input ?? {})),
  };
}

function textOf(content: Texts, field: string): string {
  if (typeof content === 'string') return content;
  return content
    .map(({ type, text }, i) => {
      if (type !== 'text') throw unsupportedBlock(type, `${field}.${i}`);
      return required(text, `${field}.${i}.text`);
    })
    .join('\n');
}

function required(text: string | undefined, field: string): string {
  if (text === undefined) throw fieldInvalid(field, 'a text', undefined);
  return text;
}
