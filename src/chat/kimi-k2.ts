import { compactJson, type JsonTree } from './json.ts';
import type { Message } from './types.ts';

/** What a template renders: messages with normalised tool calls, declarations with sorted keys. */
export interface TemplateInput {
  readonly messages: readonly Message[];
  readonly tools: readonly JsonTree[];
  /** Extra template variables (chat_template_kwargs). */
  readonly options: Readonly<Record<string, JsonTree>>;
}

const defaultSystem = 'You are Kimi, an AI assistant created by Moonshot AI.';

/**
 * Kimi K2's chat format as the current Instruct templates print it, with `thinking` as Kimi-K2-Thinking's does, ending where
 * the assistant speaks. The line feed that some copies of the Instruct template leave after the default system message is not
 * printed: it is an accident of those copies, and Moonshot's own later template has none.
 */
export function renderKimiK2(input: TemplateInput, thinking: boolean): string {
  const { messages, tools } = input;
  // Reasoning before the last final answer is dropped; reasoning of the tool loop under way is kept.
  const lastAnswer = messages.findLastIndex((m) => m.role === 'assistant' && !m.toolCalls?.length);
  let out = tools.length > 0 ? turn('system', 'tool_declare', compactJson([...tools])) : '';
  if (messages[0]?.role !== 'system') out += turn('system', 'system', defaultSystem);
  messages.forEach((message, index) => {
    const reasoning =
      thinking && message.role === 'assistant' ? thought(index > lastAnswer ? message.reasoning : '') : '';
    const name = message.name || message.role;
    out += turn(message.role, name, resultHeader(message) + reasoning + (message.content ?? '') + callSection(message));
  });
  return `${out}<|im_assistant|>assistant<|im_middle|>`;
}

function turn(role: string, name: string, body: string): string {
  const mark = role === 'user' || role === 'assistant' ? role : 'system';
  return `<|im_${mark}|>${name}<|im_middle|>${body}<|im_end|>`;
}

function thought(text: string | undefined): string {
  return `<think>${text ?? ''}</think>`;
}

function resultHeader(message: Message): string {
  return message.role === 'tool' ? `## Return of ${message.toolCallId ?? ''}\n` : '';
}

function callSection(message: Message): string {
  if (message.role !== 'assistant' || !message.toolCalls?.length) return '';
  const calls = message.toolCalls.map(
    (call) => `<|tool_call_begin|>${call.id}<|tool_call_argument_begin|>${call.arguments}<|tool_call_end|>`,
  );
  return `<|tool_calls_section_begin|>${calls.join('')}<|tool_calls_section_end|>`;
}
