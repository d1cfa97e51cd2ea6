import { createHash, randomBytes } from 'node:crypto';
import type { ChatFinished, ChatStreamEvent } from '../complete.ts';
import type { Indexed } from '../merge.ts';

export interface MessageIdentity {
  /** "msg_..." */
  readonly id: string;
  readonly model: string;
}

export interface MessageUsage {
  /** Tokens of the prompt that were computed; those found in the cache are counted beside it. */
  readonly input_tokens: number;
  readonly cache_creation_input_tokens: number;
  readonly cache_read_input_tokens: number;
  readonly output_tokens: number;
}

export type ContentBlock =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'thinking'; readonly thinking: string; readonly signature: string }
  | { readonly type: 'tool_use'; readonly id: string; readonly name: string; readonly input: unknown };

export type StopReason = 'end_turn' | 'max_tokens' | 'stop_sequence' | 'tool_use' | 'model_context_window_exceeded';

export interface AnswerMessage {
  readonly id: string;
  readonly type: 'message';
  readonly role: 'assistant';
  readonly model: string;
  readonly content: readonly ContentBlock[];
  readonly stop_reason: StopReason | null;
  readonly stop_sequence: string | null;
  readonly usage: MessageUsage;
}

export type BlockDelta =
  | { readonly type: 'text_delta'; readonly text: string }
  | { readonly type: 'thinking_delta'; readonly thinking: string }
  | { readonly type: 'signature_delta'; readonly signature: string }
  | { readonly type: 'input_json_delta'; readonly partial_json: string };

export interface MessageDelta {
  readonly stop_reason: StopReason;
  readonly stop_sequence: string | null;
}

export type MessageEvent =
  | { readonly type: 'message_start'; readonly message: AnswerMessage }
  | { readonly type: 'ping' }
  | { readonly type: 'content_block_start'; readonly index: number; readonly content_block: ContentBlock }
  | { readonly type: 'content_block_delta'; readonly index: number; readonly delta: BlockDelta }
  | { readonly type: 'content_block_stop'; readonly index: number }
  | { readonly type: 'message_delta'; readonly delta: MessageDelta; readonly usage: MessageUsage }
  | { readonly type: 'message_stop' };

/**
 * One answer as the events of a stream, in their strict order: one block is open at a time, and each is closed before the
 * next. `wantedTokens` is the length the client allowed, which the context may not have had room for.
 */
export async function* toEvents(
  events: AsyncIterable<Indexed<ChatStreamEvent>>,
  identity: MessageIdentity,
  wantedTokens: number,
): AsyncGenerator<MessageEvent, void, void> {
  const blocks = new Blocks();
  for await (const [, event] of events) {
    if (event.type === 'started') {
      const usage = usageOf({ ...event, completionTokens: 0 });
      const nothing = { content: [], stop_reason: null, stop_sequence: null };
      yield { type: 'message_start', message: { ...identity, type: 'message', role: 'assistant', ...nothing, usage } };
    } else if (event.type === 'finished') {
      yield* blocks.close();
      const delta = { stop_reason: stopReason(event, wantedTokens), stop_sequence: event.stopString };
      yield { type: 'message_delta', delta, usage: usageOf(event) };
      yield { type: 'message_stop' };
    } else {
      yield* blocks.take(event);
    }
  }
}

/** The content so far: which block is open, if any. */
class Blocks {
  #open: ContentBlock['type'] | null = null;
  #count = 0;
  #thoughts = createHash('sha256');

  *take(event: Exclude<ChatStreamEvent, { type: 'started' | 'finished' }>): Generator<MessageEvent, void, void> {
    switch (event.type) {
      case 'text':
        if (this.#open !== 'text') yield* this.#start({ type: 'text', text: '' });
        return yield this.#delta({ type: 'text_delta', text: event.text });
      case 'reasoning':
        if (this.#open !== 'thinking') yield* this.#start({ type: 'thinking', thinking: '', signature: '' });
        this.#thoughts.update(event.text);
        return yield this.#delta({ type: 'thinking_delta', thinking: event.text });
      case 'tool-call': {
        const id = `toolu_${randomBytes(12).toString('hex')}`;
        return yield* this.#start({ type: 'tool_use', id, name: event.name, input: {} });
      }
      case 'tool-arguments':
        return yield this.#delta({ type: 'input_json_delta', partial_json: event.text });
    }
  }

  *close(): Generator<MessageEvent, void, void> {
    if (this.#open === null) return;
    if (this.#open === 'thinking') {
      // Clients send it back with the block. Here nobody checks it, since a conversation may be edited.
      yield this.#delta({ type: 'signature_delta', signature: this.#thoughts.digest('base64') });
      this.#thoughts = createHash('sha256');
    }
    yield { type: 'content_block_stop', index: this.#count - 1 };
    this.#open = null;
  }

  *#start(block: ContentBlock): Generator<MessageEvent, void, void> {
    yield* this.close();
    this.#open = block.type;
    yield { type: 'content_block_start', index: this.#count++, content_block: block };
    if (this.#count === 1) yield { type: 'ping' };
  }

  #delta(delta: BlockDelta): MessageEvent {
    return { type: 'content_block_delta', index: this.#count - 1, delta };
  }
}

function stopReason({ reason, stopString, completionTokens }: ChatFinished, wantedTokens: number): StopReason {
  if (reason === 'tool_calls') return 'tool_use';
  if (reason === 'length') return completionTokens < wantedTokens ? 'model_context_window_exceeded' : 'max_tokens';
  return stopString === null ? 'end_turn' : 'stop_sequence';
}

interface Counted {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

function usageOf({ promptTokens, cachedTokens, completionTokens }: Counted): MessageUsage {
  return {
    input_tokens: promptTokens - cachedTokens,
    cache_creation_input_tokens: 0,
    cache_read_input_tokens: cachedTokens,
    output_tokens: completionTokens,
  };
}
