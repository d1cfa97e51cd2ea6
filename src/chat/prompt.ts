import type { Tokenizer } from '../tokenizer/types.ts';
import { type ControlGuard, createControlGuard } from './control-guard.ts';
import { mapStrings, toTree } from './json.ts';
import type { TemplateInput } from './kimi-k2.ts';
import { rendererFor, type TemplateChoice } from './template.ts';
import { declaredTools, normalizeToolCalls } from './tools.ts';
import type { Conversation, Message } from './types.ts';

export interface Prompt extends TemplateChoice {
  readonly ids: number[];
  /** What the ids say; names of control tokens in it may be the template's or, as ordinary text, a person's. */
  readonly text: string;
}

/**
 * The prompt of a conversation, ending where the assistant speaks. Control tokens come from the template alone: their names in
 * messages, tool calls and tool schemas are ordinary text. Throws TEMPLATE_*.
 */
export function renderPrompt(conversation: Conversation, tokenizer: Tokenizer): Prompt {
  const renderer = rendererFor(tokenizer);
  const guard = createControlGuard(tokenizer);
  const rendered = renderer.render(protectAll(conversation, guard));
  const { templateSource, reason } = renderer;
  return { ids: guard.encode(rendered), text: guard.plain(rendered), templateSource, reason };
}

function protectAll(conversation: Conversation, guard: ControlGuard): TemplateInput {
  const option = (value: unknown) => mapStrings(toTree(value), (text) => guard.protect(text, { whole: false }));
  return {
    messages: normalizeToolCalls(conversation.messages).map((message) => protectMessage(message, guard)),
    tools: declaredTools(conversation.tools).map((tool) =>
      mapStrings(tool, (text, isKey) => guard.protect(text, { whole: !isKey })),
    ),
    options: Object.fromEntries(
      Object.entries(conversation.templateOptions).map(([name, value]) => [name, option(value)]),
    ),
  };
}

function protectMessage(message: Message, guard: ControlGuard): Message {
  const { name, reasoning, toolCalls, toolCallId } = message;
  return {
    // Templates compare roles, so "user" stays as it is; it is the template that makes a control token of it.
    role: guard.protect(message.role, { whole: false }),
    content: message.content === null ? null : guard.protect(message.content),
    ...(name === undefined ? {} : { name: guard.protect(name) }),
    ...(reasoning === undefined ? {} : { reasoning: guard.protect(reasoning) }),
    ...(toolCallId === undefined ? {} : { toolCallId: guard.protect(toolCallId) }),
    ...(toolCalls === undefined
      ? {}
      : {
          toolCalls: toolCalls.map((call) => ({
            id: guard.protect(call.id),
            name: guard.protect(call.name),
            arguments: guard.protect(call.arguments),
          })),
        }),
  };
}
