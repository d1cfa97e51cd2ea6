import type { ChatEvent } from '../../chat/types.ts';
import type { ChatFinished, ChatStreamEvent } from '../complete.ts';

/** What all chunks of a stream, or the one answer, say about themselves. */
export interface CompletionIdentity {
  /** "chatcmpl-..." */
  readonly id: string;
  /** Unix time in seconds. */
  readonly created: number;
  readonly model: string;
  readonly fingerprint: string;
}

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
  readonly completion_tokens_details: { readonly reasoning_tokens: number };
}

interface CallDelta {
  readonly index: number;
  readonly id?: string;
  readonly type?: 'function';
  readonly function: { readonly name?: string; readonly arguments: string };
}

export interface Delta {
  readonly role?: 'assistant';
  readonly content?: string;
  readonly reasoning_content?: string;
  readonly reasoning?: string;
  readonly tool_calls?: readonly CallDelta[];
}

export interface ChunkChoice {
  readonly index: 0;
  readonly delta: Delta;
  readonly logprobs: null;
  readonly finish_reason: ChatFinished['reason'] | null;
  readonly usage?: Usage;
}

export interface ChatCompletionChunk {
  readonly id: string;
  readonly object: 'chat.completion.chunk';
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
  readonly choices: readonly ChunkChoice[];
  readonly usage?: Usage | null;
}

/**
 * A chat as the chunks of a stream: the role at the start, one delta per event, the finish reason in a chunk of its own and,
 * with `includeUsage`, the usage in a last chunk without choices.
 */
export async function* toChunks(
  events: AsyncIterable<ChatStreamEvent>,
  identity: CompletionIdentity,
  options: { readonly includeUsage: boolean },
): AsyncGenerator<ChatCompletionChunk, void, void> {
  const chunk = (choices: readonly ChunkChoice[], usage: Usage | null): ChatCompletionChunk => ({
    id: identity.id,
    object: 'chat.completion.chunk',
    created: identity.created,
    model: identity.model,
    system_fingerprint: identity.fingerprint,
    choices,
    ...(options.includeUsage ? { usage } : {}),
  });
  const choice = (delta: Delta): ChunkChoice => ({ index: 0, delta, logprobs: null, finish_reason: null });
  for await (const event of events) {
    if (event.type === 'started') {
      yield chunk([choice({ role: 'assistant', content: '' })], null);
    } else if (event.type === 'finished') {
      const usage = usageOf(event);
      // Moonshot's clients read the usage from the last choice.
      const inChoice = options.includeUsage ? { usage } : {};
      yield chunk([{ ...choice({}), finish_reason: event.reason, ...inChoice }], null);
      if (options.includeUsage) yield chunk([], usage);
    } else {
      yield chunk([choice(deltaOf(event))], null);
    }
  }
}

function deltaOf(event: ChatEvent): Delta {
  switch (event.type) {
    case 'text':
      return { content: event.text };
    case 'reasoning':
      // Moonshot and SGLang say reasoning_content, vLLM says reasoning.
      return { reasoning_content: event.text, reasoning: event.text };
    case 'tool-call': {
      const { index, id, name } = event;
      return { tool_calls: [{ index, id, type: 'function', function: { name, arguments: '' } }] };
    }
    case 'tool-arguments':
      return { tool_calls: [{ index: event.index, function: { arguments: event.text } }] };
  }
}

export function usageOf(finished: ChatFinished): Usage {
  return {
    prompt_tokens: finished.promptTokens,
    completion_tokens: finished.completionTokens,
    total_tokens: finished.promptTokens + finished.completionTokens,
    prompt_tokens_details: { cached_tokens: finished.cachedTokens },
    completion_tokens_details: { reasoning_tokens: finished.reasoningTokens },
  };
}
