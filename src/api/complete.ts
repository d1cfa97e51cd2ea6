import { randomUUID } from 'node:crypto';
import { createOutputParser, type OutputParser } from '../chat/parse.ts';
import { renderPrompt } from '../chat/prompt.ts';
import { StopStrings } from '../chat/stop-strings.ts';
import type { ParsedCall } from '../chat/tool-call.ts';
import { countToolCalls } from '../chat/tools.ts';
import type { ChatEvent, Conversation, Tool } from '../chat/types.ts';
import type {
  CallConstraint,
  ConstraintSpec,
  JsonSchema,
  TextConstraint,
  ToolConstraint,
  Unenforced,
} from '../constrain/types.ts';
import { perigeeError } from '../errors.ts';
import type { TokenLogprobs } from '../sampling/logprobs.ts';
import type { SamplingOptions } from '../sampling/types.ts';
import type { EngineClient, FinishReason, GenerationEvent, GenerationTiming } from '../scheduler/types.ts';
import type { Tokenizer } from '../tokenizer/types.ts';
import { Stopwatch } from './stopwatch.ts';

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
  /** Before so many tokens neither an end of turn nor a stop string ends the answer. */
  readonly minTokens?: number;
  /** Asks for log-probabilities of the text's tokens, and of so many likeliest ones in the place of each. */
  readonly topLogprobs?: number;
  /** Absent or null: text, or calls of the declared tools with arguments that follow their schemas. */
  readonly constraint?: ChatConstraint | null;
}

/** What the answer must be: JSON (an object, or what the schema says), or calls, of one tool or of any. */
export type ChatConstraint = AnswerConstraint | { readonly kind: 'tools'; readonly name?: string };

export type AnswerConstraint = { readonly kind: 'json' } | SchemaConstraint;

export interface SchemaConstraint {
  readonly kind: 'schema';
  readonly schema: JsonSchema;
  /** Refuse a schema with keywords that cannot be enforced, rather than leave them out. */
  readonly strict?: boolean;
}

export interface ChatStarted {
  readonly type: 'started';
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** Keywords of schemas that the answer is not held to; absent: none. */
  readonly unenforced?: readonly Unenforced[];
}

/** A piece of the answer's text. */
export interface ChatText {
  readonly type: 'text';
  readonly text: string;
  /** Of the tokens since the last piece; joined they are the text, unless a stop string cut the last one. */
  readonly logprobs?: readonly TokenLogprobs[];
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
export type ChatStreamEvent = ChatStarted | Exclude<ChatEvent, { type: 'text' }> | ChatText | ChatFinished;

/** The prompt of a request in token ids. Throws TEMPLATE_*. */
export function chatPrompt({ conversation }: ChatRequest, tokenizer: Tokenizer): readonly number[] {
  return renderPrompt(conversation, tokenizer).ids;
}

/**
 * Answers a conversation. Throws TEMPLATE_*, CONTEXT_LENGTH_EXCEEDED, QUEUE_FULL and ENGINE_FAILED; aborting the signal, or
 * leaving the loop, ends the generation before the engine's next step. Several answers to one request share its `prompt`.
 */
export async function* chat(
  engine: EngineClient,
  tokenizer: Tokenizer,
  request: ChatRequest,
  signal?: AbortSignal,
  prompt = chatPrompt(request, tokenizer),
): AsyncGenerator<ChatStreamEvent, void, void> {
  const maxTokens = answerLimit(prompt.length, request.maxTokens, engine.contextTokens);
  const answer = new Answer(tokenizer, request, prompt);
  const stopTokens = [...(request.ignoreEndOfTurn ? [] : tokenizer.stopTokens), ...request.stopTokens];
  const constraint = constraintFor(request, reasoningOpen(prompt, tokenizer));
  const generation = engine.generate(
    {
      id: randomUUID(),
      prompt,
      maxTokens,
      sampling: {
        ...samplingFor(request, tokenizer),
        postponed: { tokens: stopTokens, count: request.minTokens ?? 0 },
      },
      stopTokens,
      ...(constraint !== null && { constraint }),
      ...(request.topLogprobs !== undefined && { logprobs: { top: request.topLogprobs, prompt: false } }),
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

/** Most tokens an answer may have. Throws CONTEXT_LENGTH_EXCEEDED and MAX_TOKENS_EXCEEDS_CONTEXT. */
export function answerLimit(promptTokens: number, maxTokens: number | null, contextTokens: number): number {
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

/** `wanted`, or as many tokens as the context has left; at least one, so that a prompt that is too long is told. */
export function fittingLimit(promptTokens: number, wanted: number | null, contextTokens: number): number {
  return Math.max(1, Math.min(wanted ?? contextTokens, contextTokens - promptTokens));
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

function reasoningOpen(prompt: readonly number[], tokenizer: Tokenizer): boolean {
  return prompt.at(-1) === tokenizer.specials.get('<think>');
}

function constraintFor(request: ChatRequest, reasoningOpen: boolean): ConstraintSpec | null {
  const { constraint = null } = request;
  const calls = request.toolCalls ? callsFor(request, constraint) : null;
  const answer = constraint === null || constraint.kind === 'tools' ? null : answerSchema(constraint);
  return answer === null && calls === null ? null : { answer, calls, reasoningOpen };
}

export function answerSchema(constraint: AnswerConstraint): TextConstraint {
  if (constraint.kind === 'json') return { schema: { type: 'object' }, strict: true };
  const { schema, strict = false } = constraint;
  return { schema, strict, param: 'response_format.json_schema.schema' };
}

function callsFor(request: ChatRequest, constraint: ChatConstraint | null): CallConstraint | null {
  const { tools, messages } = request.conversation;
  const only = constraint?.kind === 'tools' ? constraint : null;
  if (tools.length === 0) return null;
  const constraints = tools.map((tool, index) => toolConstraint(tool, index, only !== null));
  return {
    tools: only?.name === undefined ? constraints : constraints.filter(({ name }) => name === only.name),
    required: only !== null,
    parallel: request.parallelToolCalls,
    firstIndex: countToolCalls(messages),
  };
}

/** Where a call is asked for, its arguments are the answer, and must be what the client reckons with. */
function toolConstraint({ name, declaration }: Tool, index: number, asked: boolean): ToolConstraint {
  const declared = (declaration.function ?? {}) as { parameters?: JsonSchema; strict?: unknown };
  const constraint = { name, strict: asked || declared.strict === true, param: `tools.${index}.function.parameters` };
  if (declared.parameters === undefined || declared.parameters === null) return constraint;
  // A copy has plain numbers, where a declaration may have an ExactNumber for the prompt's sake.
  return { ...constraint, parameters: JSON.parse(JSON.stringify(declared.parameters)) };
}

/** Turns the engine's events into the chat's, and knows when the answer is over. */
class Answer {
  readonly #parser: OutputParser;
  readonly #tokenizer: Tokenizer;
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
  /** Of the text's tokens that no piece has told of. */
  #logprobs: TokenLogprobs[] = [];

  constructor(tokenizer: Tokenizer, request: ChatRequest, prompt: readonly number[]) {
    this.#tokenizer = tokenizer;
    this.#request = request;
    this.#promptTokens = prompt.length;
    this.#stops = new StopStrings(request.stopStrings);
    this.#parser = createOutputParser({
      tokenizer,
      tools: request.conversation.tools,
      historyCalls: countToolCalls(request.conversation.messages),
      reasoningOpen: reasoningOpen(prompt, tokenizer),
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
      yield event;
    } else if (event.type === 'token') {
      this.#clock.token();
      this.#completionTokens++;
      const events = this.#parser.push(event.token);
      if (event.logprobs && this.#parser.inText && !this.#tokenizer.isSpecial(event.token)) {
        this.#logprobs.push(event.logprobs);
      }
      yield* this.#search(events);
      const oneCall = !this.#request.parallelToolCalls && this.#parser.calls[0]?.complete;
      if (oneCall) this.#over = true;
    } else if (event.type === 'ended') {
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
  *#search(events: readonly ChatEvent[]): Generator<ChatStreamEvent, void, void> {
    for (const event of events) {
      if (event.type !== 'text') {
        yield* this.#held();
        yield event;
        continue;
      }
      if (this.#completionTokens < (this.#request.minTokens ?? 0)) {
        yield this.#said(event.text);
        continue;
      }
      const { text, stop } = this.#stops.push(event.text);
      if (text !== '') yield this.#said(text);
      if (stop !== null) {
        this.#stopString = stop;
        this.#over = true;
        return;
      }
    }
  }

  *#held(): Generator<ChatStreamEvent, void, void> {
    const text = this.#stops.end();
    if (text !== '') yield this.#said(text);
  }

  #said(text: string): ChatText {
    if (this.#request.topLogprobs === undefined) return { type: 'text', text };
    const logprobs = this.#logprobs;
    this.#logprobs = [];
    return { type: 'text', text, logprobs };
  }
}
