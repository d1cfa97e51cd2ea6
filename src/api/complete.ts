import { randomUUID } from 'node:crypto';
import { createOutputParser, type OutputParser } from '../chat/parse.ts';
import { renderPrompt } from '../chat/prompt.ts';
import { StopStrings } from '../chat/stop-strings.ts';
import type { ParsedCall } from '../chat/tool-call.ts';
import { countToolCalls } from '../chat/tools.ts';
import type { ChatEvent, Conversation } from '../chat/types.ts';
import { perigeeError } from '../errors.ts';
import type { SamplingOptions } from '../sampling/types.ts';
import type { EngineClient, FinishReason, GenerationEvent, GenerationTiming } from '../scheduler/types.ts';
import type { Tokenizer } from '../tokenizer/types.ts';

export interface ChatRequest {
  readonly conversation: Conversation;
  readonly sampling: SamplingOptions;
  /** Most tokens of the answer; null: as many as the context holds. */
  readonly maxTokens: number | null;
  /** Texts that end the answer; searched in its text only, not in reasoning or tool calls. */
  readonly stopStrings: readonly string[];
  /** Further token ids that end the answer. */
  readonly stopTokens: readonly number[];
  /** Goes on behind the model's own end of turn; for measurements. */
  readonly ignoreEndOfTurn: boolean;
  /** False (tool_choice none): the model cannot open a tool call. */
  readonly toolCalls: boolean;
  /** False: the answer ends with its first tool call. */
  readonly parallelToolCalls: boolean;
}

export interface ChatStarted {
  readonly type: 'started';
  readonly promptTokens: number;
  readonly cachedTokens: number;
}

export interface ChatFinished {
  readonly type: 'finished';
  readonly reason: FinishReason | 'tool_calls';
  /** The stop string that ended the answer. */
  readonly stopString: string | null;
  readonly calls: readonly ParsedCall[];
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** Tokens generated, the end of turn included. */
  readonly completionTokens: number;
  readonly reasoningTokens: number;
  readonly timing: GenerationTiming;
}

/** A chat from its start to its end: one `started`, then the answer's events, then one `finished`. */
export type ChatStreamEvent = ChatStarted | ChatEvent | ChatFinished;

/**
 * Answers a conversation. Throws TEMPLATE_*, CONTEXT_LENGTH_EXCEEDED, QUEUE_FULL and ENGINE_FAILED; aborting the signal, or
 * leaving the loop, ends the generation before the engine's next step.
 */
export async function* chat(
  engine: EngineClient,
  tokenizer: Tokenizer,
  request: ChatRequest,
  signal?: AbortSignal,
): AsyncGenerator<ChatStreamEvent, void, void> {
  const prompt = renderPrompt(request.conversation, tokenizer).ids;
  const maxTokens = answerLimit(prompt.length, request.maxTokens, engine.contextTokens);
  const answer = new Answer(tokenizer, request, prompt);
  const generation = engine.generate(
    {
      id: randomUUID(),
      prompt,
      maxTokens,
      sampling: samplingFor(request, tokenizer),
      stopTokens: [...(request.ignoreEndOfTurn ? [] : tokenizer.stopTokens), ...request.stopTokens],
    },
    signal,
  );
  // Leaving this loop early, for a stop string, tells the engine to stop (EngineClient.generate).
  for await (const event of generation) {
    yield* answer.take(event);
    if (answer.over) break;
  }
  signal?.throwIfAborted();
  yield answer.finished();
}

function answerLimit(promptTokens: number, maxTokens: number | null, contextTokens: number): number {
  if (promptTokens >= contextTokens) throw perigeeError('CONTEXT_LENGTH_EXCEEDED', { promptTokens, contextTokens });
  if (maxTokens !== null && promptTokens + maxTokens > contextTokens) {
    throw perigeeError(
      'MAX_TOKENS_EXCEEDS_CONTEXT',
      { promptTokens, maxTokens, contextTokens },
      { param: 'max_tokens' },
    );
  }
  return maxTokens ?? contextTokens - promptTokens;
}

function samplingFor(request: ChatRequest, tokenizer: Tokenizer): SamplingOptions {
  if (request.toolCalls) return request.sampling;
  const openers = ['<|tool_calls_section_begin|>', '<|tool_call_begin|>'].flatMap(
    (name) => tokenizer.specials.get(name) ?? [],
  );
  const forbidden = openers.map((id) => [id, Number.NEGATIVE_INFINITY] as const);
  const others = request.sampling.logitBias.filter(([id]) => !openers.includes(id));
  return { ...request.sampling, logitBias: [...others, ...forbidden] };
}

/** Turns the engine's events into the chat's, and knows when the answer is over. */
class Answer {
  readonly #parser: OutputParser;
  readonly #stops: StopStrings;
  readonly #request: ChatRequest;
  readonly #clock = new Stopwatch();
  #promptTokens: number;
  #cachedTokens = 0;
  #completionTokens = 0;
  #reason: FinishReason = 'stop';
  #stopString: string | null = null;
  #timing: GenerationTiming | null = null;
  #over = false;

  constructor(tokenizer: Tokenizer, request: ChatRequest, prompt: readonly number[]) {
    this.#request = request;
    this.#promptTokens = prompt.length;
    this.#stops = new StopStrings(request.stopStrings);
    this.#parser = createOutputParser({
      tokenizer,
      tools: request.conversation.tools,
      historyCalls: countToolCalls(request.conversation.messages),
      reasoningOpen: prompt.at(-1) === tokenizer.specials.get('<think>'),
      callsAllowed: request.toolCalls,
    });
  }

  get over(): boolean {
    return this.#over;
  }

  *take(event: GenerationEvent): Generator<ChatStreamEvent, void, void> {
    if (event.type === 'started') {
      this.#clock.started();
      this.#promptTokens = event.promptTokens;
      this.#cachedTokens = event.cachedTokens;
      yield { type: 'started', promptTokens: event.promptTokens, cachedTokens: event.cachedTokens };
    } else if (event.type === 'token') {
      this.#clock.token();
      this.#completionTokens++;
      yield* this.#search(this.#parser.push(event.token));
      const oneCall = !this.#request.parallelToolCalls && this.#parser.calls[0]?.complete;
      if (oneCall) this.#over = true;
    } else {
      this.#reason = event.reason;
      this.#timing = event.timing;
      if (event.stopToken !== null) this.#completionTokens++;
      yield* this.#search(this.#parser.end(event.reason));
      if (!this.#over) yield* this.#held();
      this.#over = true;
    }
  }

  finished(): ChatFinished {
    return {
      type: 'finished',
      // A stop string wins over the length, should both end the answer.
      reason: this.#stopString === null ? this.#parser.finishReason(this.#reason) : 'stop',
      stopString: this.#stopString,
      calls: this.#parser.calls,
      promptTokens: this.#promptTokens,
      cachedTokens: this.#cachedTokens,
      completionTokens: this.#completionTokens,
      reasoningTokens: this.#parser.reasoningTokens,
      timing: this.#timing ?? this.#clock.timing(this.#promptTokens, this.#completionTokens),
    };
  }

  /** Passes events on, the text among them less the stop string that ends the answer. */
  *#search(events: readonly ChatEvent[]): Generator<ChatEvent, void, void> {
    for (const event of events) {
      if (event.type !== 'text') {
        yield* this.#held();
        yield event;
        continue;
      }
      const { text, stop } = this.#stops.push(event.text);
      if (text !== '') yield { type: 'text', text };
      if (stop !== null) {
        this.#stopString = stop;
        this.#over = true;
        return;
      }
    }
  }

  *#held(): Generator<ChatEvent, void, void> {
    const text = this.#stops.end();
    if (text !== '') yield { type: 'text', text };
  }
}

/** Times of a generation that ended on this side, before the engine could report its own. */
class Stopwatch {
  readonly #created = performance.now();
  #start = this.#created;
  #firstToken: number | null = null;

  started(): void {
    this.#start = performance.now();
  }

  token(): void {
    this.#firstToken ??= performance.now();
  }

  timing(promptTokens: number, decodedTokens: number): GenerationTiming {
    const now = performance.now();
    const first = this.#firstToken ?? now;
    return {
      queueMilliseconds: this.#start - this.#created,
      promptMilliseconds: first - this.#start,
      decodeMilliseconds: now - first,
      promptTokens,
      decodedTokens,
    };
  }
}
