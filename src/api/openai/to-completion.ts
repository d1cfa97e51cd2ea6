import type { ChatFinished, ChatStreamEvent } from '../complete.ts';
import { type CompletionIdentity, type Usage, usageOf } from './to-chunks.ts';

export interface AnswerMessage {
  readonly role: 'assistant';
  /** Null when the answer is tool calls, or reasoning, alone. */
  readonly content: string | null;
  readonly refusal: null;
  readonly reasoning_content?: string;
  readonly reasoning?: string;
  readonly tool_calls?: readonly {
    readonly id: string;
    readonly type: 'function';
    readonly function: { readonly name: string; readonly arguments: string };
  }[];
}

export interface ChatCompletion {
  readonly id: string;
  readonly object: 'chat.completion';
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
  readonly choices: readonly {
    readonly index: 0;
    readonly message: AnswerMessage;
    readonly logprobs: null;
    readonly finish_reason: ChatFinished['reason'];
  }[];
  readonly usage: Usage;
}

/** A whole chat as one answer. */
export async function toCompletion(
  events: AsyncIterable<ChatStreamEvent>,
  identity: CompletionIdentity,
): Promise<ChatCompletion> {
  let content = '';
  let reasoning = '';
  let finished: ChatFinished | undefined;
  for await (const event of events) {
    if (event.type === 'text') content += event.text;
    else if (event.type === 'reasoning') reasoning += event.text;
    else if (event.type === 'finished') finished = event;
  }
  // chat() ends with `finished` or throws.
  const end = finished!;
  return {
    id: identity.id,
    object: 'chat.completion',
    created: identity.created,
    model: identity.model,
    system_fingerprint: identity.fingerprint,
    choices: [{ index: 0, message: toAnswer(content, reasoning, end), logprobs: null, finish_reason: end.reason }],
    usage: usageOf(end),
  };
}

function toAnswer(content: string, reasoning: string, { calls }: ChatFinished): AnswerMessage {
  const silent = content === '' && (calls.length > 0 || reasoning !== '');
  return {
    role: 'assistant',
    content: silent ? null : content,
    refusal: null,
    ...(reasoning === '' ? {} : { reasoning_content: reasoning, reasoning }),
    ...(calls.length === 0
      ? {}
      : {
          tool_calls: calls.map((call) => ({
            id: call.id,
            type: 'function' as const,
            function: { name: call.name, arguments: call.arguments },
          })),
        }),
  };
}
