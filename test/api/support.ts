/** An engine that says what a test tells it to, and notes what it was asked. */
import type { ChatStreamEvent } from '../../src/api/complete.ts';
import type { ModelConfig } from '../../src/model/config.ts';
import type { EngineClient, FinishReason, GenerationEvent, GenerationRequest } from '../../src/scheduler/types.ts';
import type { Tokenizer } from '../../src/tokenizer/types.ts';

export interface FakeEngine extends EngineClient {
  readonly requests: GenerationRequest[];
  /** Tokens handed out, over all generations. */
  readonly delivered: number;
  /** Whether the last generation was left or aborted before its end. */
  readonly abandoned: boolean;
}

/** `script`: what to say, control tokens by name. Ends at maxTokens, at a stop token, or with the script. */
export function fakeEngine(tokenizer: Tokenizer, script: string, contextTokens = 10_000): FakeEngine {
  const requests: GenerationRequest[] = [];
  let delivered = 0;
  let abandoned = false;
  async function* generate(request: GenerationRequest, signal?: AbortSignal): AsyncGenerator<GenerationEvent> {
    requests.push(request);
    abandoned = true;
    const promptTokens = request.prompt.length;
    yield { type: 'started', promptTokens, cachedTokens: 3 };
    let count = 0;
    const end = (reason: FinishReason, stopToken: number | null): GenerationEvent => {
      abandoned = false;
      const times = { queueMilliseconds: 1, promptMilliseconds: 2, decodeMilliseconds: 3 };
      return { type: 'ended', reason, stopToken, timing: { ...times, promptTokens, decodedTokens: count } };
    };
    for (const token of tokenizer.encode(script, { specials: true })) {
      signal?.throwIfAborted();
      if (request.stopTokens.includes(token)) return yield end('stop', token);
      count++;
      delivered++;
      yield { type: 'token', token };
      if (count === request.maxTokens) return yield end('length', null);
    }
    yield end('stop', null);
  }
  return {
    config: { name: 'fake' } as ModelConfig,
    contextTokens,
    requests,
    get delivered() {
      return delivered;
    },
    get abandoned() {
      return abandoned;
    },
    generate,
    status: () => ({
      state: 'ready',
      selection: null,
      running: 0,
      waiting: 0,
      statistics: null,
      restarts: 0,
      failures: 0,
      restartsIn: null,
      lastFailure: null,
    }),
    close: async () => {},
  };
}

export async function collect<T>(events: AsyncIterable<T>): Promise<T[]> {
  const out: T[] = [];
  for await (const event of events) out.push(event);
  return out;
}

/** The text of a chat, put together. */
export function textOf(events: readonly ChatStreamEvent[]): string {
  return events.map((event) => (event.type === 'text' ? event.text : '')).join('');
}
