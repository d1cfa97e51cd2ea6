import { randomUUID } from 'node:crypto';
import { StopStrings } from '../chat/stop-strings.ts';
import type { TokenLogprobs } from '../sampling/logprobs.ts';
import type { SamplingOptions } from '../sampling/types.ts';
import type { EngineClient, FinishReason, GenerationEvent, GenerationTiming } from '../scheduler/types.ts';
import type { StreamDecoder, Tokenizer } from '../tokenizer/types.ts';
import { type AnswerConstraint, answerLimit, answerSchema, type ChatStarted, type ChatText } from './complete.ts';
import { Stopwatch } from './stopwatch.ts';

/** A text to go on with, in token ids: no template, no roles, no tool calls. */
export interface TextRequest {
  readonly prompt: readonly number[];
  readonly sampling: SamplingOptions;
  /** 0: nothing is generated, which is of use for the prompt's log-probabilities. */
  readonly maxTokens: number;
  readonly stopStrings: readonly string[];
  readonly stopTokens: readonly number[];
  readonly ignoreEndOfTurn: boolean;
  /** Before so many tokens neither an end of turn nor a stop string ends the text. */
  readonly minTokens: number;
  /** Asks for log-probabilities of the text's tokens, and of so many likeliest ones in the place of each. */
  readonly topLogprobs?: number;
  /** Asks for those of the prompt's tokens as well. */
  readonly promptLogprobs: boolean;
  /** What the text must be; absent or null: anything. */
  readonly constraint?: AnswerConstraint | null;
}

export interface PromptLogprobs {
  readonly type: 'prompt-logprobs';
  /** Of the prompt's next tokens, from the second on. */
  readonly tokens: readonly TokenLogprobs[];
}

export interface TextFinished {
  readonly type: 'finished';
  /** What follows the last piece: the last token's text and what had been held back. */
  readonly text: string;
  /** Of the tokens behind the last piece, a stop token included. */
  readonly logprobs: readonly TokenLogprobs[];
  readonly reason: FinishReason;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** Tokens generated, a stop token included. */
  readonly completionTokens: number;
  readonly timing: GenerationTiming;
}

/** `started`, the prompt's log-probabilities if asked for, the text in pieces, one `finished`. */
export type TextEvent = ChatStarted | PromptLogprobs | ChatText | TextFinished;

/**
 * Goes on with a text. Throws PROMPT_EMPTY, CONTEXT_LENGTH_EXCEEDED, QUEUE_FULL and ENGINE_FAILED; aborting the signal, or
 * leaving the loop, ends the generation before the engine's next step.
 */
export async function* completeText(
  engine: EngineClient,
  tokenizer: Tokenizer,
  request: TextRequest,
  signal?: AbortSignal,
): AsyncGenerator<TextEvent, void, void> {
  const { prompt, sampling, topLogprobs, promptLogprobs, minTokens } = request;
  // The logits behind a prompt give a token in any case; where none is wanted it is dropped here.
  const maxTokens = answerLimit(prompt.length, Math.max(1, request.maxTokens), engine.contextTokens);
  const stopTokens = [...(request.ignoreEndOfTurn ? [] : tokenizer.stopTokens), ...request.stopTokens];
  const continuation = new Continuation(tokenizer, request);
  const generation = engine.generate(
    {
      id: randomUUID(),
      prompt,
      maxTokens,
      sampling: { ...sampling, postponed: { tokens: stopTokens, count: minTokens } },
      stopTokens,
      ...(request.constraint && {
        constraint: { answer: answerSchema(request.constraint), calls: null, reasoningOpen: false },
      }),
      ...(topLogprobs !== undefined && { logprobs: { top: topLogprobs, prompt: promptLogprobs } }),
    },
    signal,
  );
  for await (const event of generation) {
    yield* continuation.take(event);
    if (continuation.over) break;
  }
  signal?.throwIfAborted();
  yield continuation.finished();
}

/** Turns the engine's events into text. */
class Continuation {
  readonly #tokenizer: Tokenizer;
  readonly #request: TextRequest;
  readonly #decoder: StreamDecoder;
  readonly #stops: StopStrings;
  readonly #clock = new Stopwatch();
  #timing: GenerationTiming | null = null;
  #started: ChatStarted = { type: 'started', promptTokens: 0, cachedTokens: 0 };
  #completionTokens = 0;
  #reason: FinishReason = 'stop';
  /** Text and log-probabilities that no piece has told of. */
  #text = '';
  #logprobs: TokenLogprobs[] = [];
  over = false;

  constructor(tokenizer: Tokenizer, request: TextRequest) {
    this.#tokenizer = tokenizer;
    this.#request = request;
    this.#decoder = tokenizer.streamDecoder();
    this.#stops = new StopStrings(request.stopStrings);
  }

  *take(event: GenerationEvent): Generator<TextEvent, void, void> {
    switch (event.type) {
      case 'started':
        this.#clock.started();
        this.#started = event;
        yield event;
        break;
      case 'prompt-logprobs':
        yield event;
        break;
      case 'token':
        this.#clock.token();
        if (this.#request.maxTokens === 0) break;
        this.#add(event.token, event.logprobs);
        // The last token's text goes out together with the reason to end.
        if (this.#completionTokens < this.#request.maxTokens && !this.over) yield* this.#piece();
        break;
      case 'ended':
        this.#end(event);
    }
  }

  finished(): TextFinished {
    const { promptTokens, cachedTokens } = this.#started;
    return {
      type: 'finished',
      text: this.#text,
      logprobs: this.#logprobs,
      reason: this.#reason,
      promptTokens,
      cachedTokens,
      completionTokens: this.#completionTokens,
      timing: this.#timing ?? this.#clock.timing(promptTokens, this.#completionTokens),
    };
  }

  #add(token: number, logprobs: TokenLogprobs | undefined): void {
    this.#completionTokens++;
    if (logprobs) this.#logprobs.push(logprobs);
    if (!this.#tokenizer.isSpecial(token)) this.#search(this.#decoder.push(token));
  }

  #search(decoded: string): void {
    if (this.#completionTokens < this.#request.minTokens) {
      this.#text += decoded;
      return;
    }
    const { text, stop } = this.#stops.push(decoded);
    this.#text += text;
    if (stop !== null) this.over = true;
  }

  *#piece(): Generator<ChatText, void, void> {
    if (this.#text === '') return;
    const piece = { type: 'text' as const, text: this.#text };
    this.#text = '';
    if (this.#request.topLogprobs === undefined) {
      yield piece;
      return;
    }
    const logprobs = this.#logprobs;
    this.#logprobs = [];
    yield { ...piece, logprobs };
  }

  #end({ reason, stopToken, logprobs, timing }: Extract<GenerationEvent, { type: 'ended' }>): void {
    this.#timing = timing;
    if (this.#request.maxTokens === 0) {
      this.#reason = 'length';
    } else {
      this.#reason = reason;
      if (stopToken !== null) this.#completionTokens++;
      if (logprobs) this.#logprobs.push(logprobs);
      this.#search(this.#decoder.end());
      if (!this.over) this.#text += this.#stops.end();
    }
    this.over = true;
  }
}
