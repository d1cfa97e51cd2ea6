import { PerigeeError } from '../errors.ts';
import type { Tokenizer } from '../tokenizer/types.ts';
import { type CompiledTemplate, compileTemplate } from './jinja.ts';
import { type JsonTree, toTree } from './json.ts';
import { renderKimiK2, type TemplateInput } from './kimi-k2.ts';
import type { Message } from './types.ts';

/** Which renderer a model gets, and why; /health and `inspect` show it. */
export interface TemplateChoice {
  readonly templateSource: 'checkpoint' | 'kimi-k2' | 'kimi-k2-thinking';
  readonly reason: string;
}

export interface Renderer extends TemplateChoice {
  /** The prompt's text, ending where the assistant speaks. Throws TEMPLATE_*. */
  render(input: TemplateInput): string;
}

const renderers = new WeakMap<Tokenizer, Renderer>();

/**
 * The renderer for this checkpoint: its own template, or Kimi K2's format where there is none or where it is an early Kimi
 * template, which drops every tool call and result of the conversation.
 */
export function rendererFor(tokenizer: Tokenizer): Renderer {
  let renderer = renderers.get(tokenizer);
  if (renderer === undefined) {
    renderer = chooseRenderer(tokenizer);
    renderers.set(tokenizer, renderer);
  }
  return renderer;
}

function chooseRenderer(tokenizer: Tokenizer): Renderer {
  const template = tokenizer.chatTemplate;
  if (template === null) return builtIn('the checkpoint brings no chat template', tokenizer.specials.has('<think>'));
  if (template.includes('<|im_middle|>') && !template.includes('tool_calls_section_begin')) {
    return builtIn("the checkpoint's chat template loses the history of tool calls", template.includes('<think>'));
  }
  let compiled: CompiledTemplate | undefined;
  let broken: unknown;
  return {
    templateSource: 'checkpoint',
    reason: 'the checkpoint brings a chat template',
    render(input) {
      if (broken !== undefined) throw broken;
      compiled ??= compileTemplate(template);
      try {
        return compiled(variables(input, tokenizer));
      } catch (error) {
        // A template that ran into its limits would hold the server up again with every request.
        if (isUnbounded(error)) broken = error;
        throw error;
      }
    },
  };
}

function builtIn(reason: string, thinking: boolean): Renderer {
  return {
    templateSource: thinking ? 'kimi-k2-thinking' : 'kimi-k2',
    reason,
    render: (input) => renderKimiK2(input, thinking),
  };
}

function isUnbounded(error: unknown): boolean {
  return error instanceof PerigeeError && error.code === 'TEMPLATE_UNBOUNDED';
}

/** The variables of Hugging Face's apply_chat_template; a client's own may add to them, not replace them. */
function variables(input: TemplateInput, tokenizer: Tokenizer): Record<string, JsonTree> {
  const name = (id: number | null) => (id === null ? null : tokenizer.decode([id]));
  return {
    bos_token: name(tokenizer.bosToken),
    eos_token: name(tokenizer.eosToken),
    pad_token: name(tokenizer.padToken),
    ...input.options,
    messages: input.messages.map(messageVariable),
    tools: input.tools.length > 0 ? [...input.tools] : null,
    add_generation_prompt: true,
  };
}

function messageVariable(message: Message): JsonTree {
  const fields = new Map<string, JsonTree>([
    ['role', message.role],
    ['content', message.content],
  ]);
  if (message.name !== undefined) fields.set('name', message.name);
  if (message.reasoning !== undefined) fields.set('reasoning_content', message.reasoning);
  if (message.toolCallId !== undefined) fields.set('tool_call_id', message.toolCallId);
  if (message.toolCalls?.length) {
    const calls = message.toolCalls.map((call) => ({
      id: call.id,
      type: 'function',
      function: { name: call.name, arguments: call.arguments },
    }));
    fields.set('tool_calls', toTree(calls));
  }
  return fields;
}
