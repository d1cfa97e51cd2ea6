import type { ChatFinished, ChatStarted, ChatStreamEvent } from '../complete.ts';
import type { Indexed } from '../merge.ts';
import { type ChatLogprobs, chatLogprobs, type TokenNames } from './logprobs.ts';

/** What all chunks of a stream, or the one answer, say about themselves. */
export interface CompletionIdentity {
  /** "chatcmpl-..." or "cmpl-..." */
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
  readonly index: number;
  readonly delta: Delta;
  readonly logprobs: ChatLogprobs | null;
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
 * The answers as the chunks of a stream. Each has its role at the start, one delta per event and the finish reason in a chunk
 * of its own; with `includeUsage` the usage of all is in a last chunk without choices.
 */
export async function* toChunks(
  events: AsyncIterable<Indexed<ChatStreamEvent>>,
  identity: CompletionIdentity,
  options: { readonly includeUsage: boolean; readonly names: TokenNames },
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
  const ends: ChatFinished[] = [];
  for await (const [index, event] of events) {
    const choice = (delta: Delta): ChunkChoice => ({ index, delta, logprobs: null, finish_reason: null });
    if (event.type === 'started') {
      yield chunk([choice({ role: 'assistant', content: '' })], null);
    } else if (event.type === 'finished') {
      ends[index] = event;
      // Moonshot's clients read the usage from the last choice.
      const inChoice = options.includeUsage ? { usage: usageOf([event]) } : {};
      yield chunk([{ ...choice({}), finish_reason: event.reason, ...inChoice }], null);
    } else {
      const logprobs = event.type === 'text' && event.logprobs ? chatLogprobs(event.logprobs, options.names) : null;
      yield chunk([{ ...choice(deltaOf(event)), logprobs }], null);
    }
  }
  if (options.includeUsage) yield chunk([], usageOf(ends));
}

function deltaOf(event: Exclude<ChatStreamEvent, ChatStarted | ChatFinished>): Delta {
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

/** The tokens of all answers, and of each prompt once: it has `choices` answers in a row, or all of them. */
export function usageOf(ends: readonly Ended[], choices = ends.length): Usage {
  const prompts = ends.filter((_, index) => index % choices === 0);
  const promptTokens = sum(prompts, (end) => end.promptTokens);
  const completionTokens = sum(ends, (end) => end.completionTokens);
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: sum(prompts, (end) => end.cachedTokens) },
    completion_tokens_details: { reasoning_tokens: sum(ends, (end) => end.reasoningTokens ?? 0) },
  };
}

interface Ended {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly completionTokens: number;
  readonly reasoningTokens?: number;
}

function sum(ends: readonly Ended[], count: (end: Ended) => number): number {
  return ends.reduce((total, end) => total + count(end), 0);
}
