import { renderPrompt } from '../../chat/prompt.ts';
import type { Conversation, Tool } from '../../chat/types.ts';
import { perigeeError } from '../../errors.ts';
import { neutralSampling } from '../../sampling/defaults.ts';
import type { Tokenizer } from '../../tokenizer/types.ts';
import type { ChatConstraint, ChatRequest } from '../complete.ts';
import { generationOptions, type ToRequestContext } from '../openai/generation-options.ts';
import { brief, fieldInvalid, validated, withoutNulls } from '../openai/validate.ts';
import { systemMessage, toMessages } from './content.ts';
import { type CountTokensRequest, countTokensRequest, type MessagesRequest, messagesRequest } from './schema.ts';

export interface MessagesContext extends ToRequestContext {
  /** Whether temperatures mean what they mean on Moonshot's own /anthropic API. */
  readonly kimi: boolean;
}

/** Moonshot's factor from a temperature for Claude to one for Kimi K2 (its README); only on this API. */
const kimiTemperature = 0.6;

export interface ParsedMessagesRequest {
  readonly request: ChatRequest;
  readonly prompt: readonly number[];
  readonly model: string;
  readonly stream: boolean;
  readonly maxTokens: number;
}

/** Reads a parsed JSON body. Throws FIELD_INVALID and FIELD_UNSUPPORTED with the field's path as `param`. */
export function toMessagesRequest(body: unknown, context: MessagesContext): ParsedMessagesRequest {
  const fields = validated(messagesRequest, withoutNulls(body));
  const { conversation, prompt } = toPrompt(fields, context.tokenizer);
  const { stop_sequences: stop, top_p, top_k } = fields;
  const temperature = temperatureFor(fields, context);
  return {
    model: fields.model,
    stream: fields.stream ?? false,
    maxTokens: fields.max_tokens,
    prompt,
    request: {
      conversation,
      ...generationOptions(
        {
          temperature,
          ...(stop && { stop }),
          ...(top_p !== undefined && { top_p }),
          ...(top_k !== undefined && { top_k }),
        },
        context,
      ),
      maxTokens: fields.max_tokens,
      constraint: toConstraint(fields),
      toolCalls: fields.tool_choice?.type !== 'none',
      parallelToolCalls: fields.tool_choice?.disable_parallel_tool_use !== true,
    },
  };
}

/** The prompt of a request to count its tokens. Throws as toMessagesRequest does. */
export function toCountedPrompt(body: unknown, tokenizer: Tokenizer) {
  const fields = validated(countTokensRequest, withoutNulls(body));
  return { model: fields.model, prompt: toPrompt(fields, tokenizer).prompt };
}

function temperatureFor(
  { temperature }: MessagesRequest,
  { kimi, defaults = neutralSampling }: MessagesContext,
): number {
  const factor = kimi ? kimiTemperature : 1;
  if (temperature !== undefined) return temperature * factor;
  // A recommendation for this model, or the operator's wish, is no temperature for Claude.
  return defaults.temperature === neutralSampling.temperature ? factor : defaults.temperature;
}

/** A last message by the assistant is the beginning of the answer, which goes on from there. */
function toPrompt(fields: CountTokensRequest, tokenizer: Tokenizer) {
  checkTogether(fields);
  const messages = [...systemMessage(fields.system), ...fields.messages.flatMap(toMessages)];
  const last = messages.at(-1);
  const begun = last?.role === 'assistant' && last.toolCalls === undefined ? last : undefined;
  if (begun !== undefined && formatOf(fields) !== undefined) {
    throw fieldInvalid(`messages.${fields.messages.length - 1}.role`, "'user' beside an output format", 'assistant');
  }
  const conversation: Conversation = {
    messages: begun === undefined ? messages : messages.slice(0, -1),
    tools: (fields.tools ?? []).map(toTool),
    templateOptions: {
      ...(fields.thinking && { thinking: fields.thinking.type !== 'disabled' }),
      ...(typeof fields.output_config?.effort === 'string' && { reasoning_effort: fields.output_config.effort }),
    },
  };
  const { ids } = renderPrompt(conversation, tokenizer);
  return { conversation, prompt: [...ids, ...tokenizer.encode(begun?.content ?? '')] };
}

function toTool(tool: NonNullable<CountTokensRequest['tools']>[number], index: number): Tool {
  const { type = 'custom', name, description, input_schema, strict } = tool;
  if (type !== 'custom') {
    const field = `tools.${index}.type`;
    const advice = "Tools that run at Anthropic or come with its models are not here. Declare one with 'input_schema'.";
    throw perigeeError('FIELD_UNSUPPORTED', { field, value: brief(type), advice }, { param: field });
  }
  if (input_schema === undefined) throw fieldInvalid(`tools.${index}.input_schema`, 'a JSON schema', undefined);
  const parameters = input_schema.type === undefined ? { type: 'object', ...input_schema } : input_schema;
  const declared = {
    name,
    ...(description !== undefined && { description }),
    parameters,
    ...(strict !== undefined && { strict }),
  };
  return { name, declaration: { type: 'function', function: declared } };
}

function formatOf({ output_config, output_format }: CountTokensRequest) {
  return output_config?.format ?? output_format;
}

function toConstraint(fields: MessagesRequest): ChatConstraint | null {
  const { tool_choice: choice } = fields;
  if (choice?.type === 'any') return { kind: 'tools' };
  if (choice?.type === 'tool' && choice.name !== undefined) return { kind: 'tools', name: choice.name };
  const format = formatOf(fields);
  // That API's structured outputs are strict, always.
  return format === undefined ? null : { kind: 'schema', schema: format.schema, strict: true };
}

/** Rules between fields, and what is not done here. */
function checkTogether(fields: CountTokensRequest): void {
  const { tool_choice: choice, tools = [] } = fields;
  if (choice?.type === 'any' && tools.length === 0) {
    throw fieldInvalid('tool_choice.type', '"auto" or "none" without \'tools\'', choice.type);
  }
  if (choice?.type === 'tool' && !tools.some(({ name }) => name === choice.name)) {
    throw fieldInvalid('tool_choice.name', "the name of one of 'tools'", choice.name);
  }
  for (const field of ['mcp_servers', 'container'] as const) {
    const value = fields[field];
    if (value === undefined || (Array.isArray(value) && value.length === 0)) continue;
    const advice = "This server runs no tools. Declare them in 'tools' and run them in the client.";
    throw perigeeError('FIELD_UNSUPPORTED', { field, value: brief(value), advice }, { param: field });
  }
}
