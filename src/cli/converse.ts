/** Talking to a model in this process: what `run`, `chat` and the demonstration share. */
import { randomInt } from 'node:crypto';
import { type ChatFinished, type ChatStreamEvent, chat } from '../api/complete.ts';
import type { Conversation, Message, Tool } from '../chat/types.ts';
import { startLocalEngine } from '../engine-process/local-engine.ts';
import { openGguf } from '../gguf/open.ts';
import { samplingDefaults } from '../sampling/defaults.ts';
import type { SamplingOptions } from '../sampling/types.ts';
import type { EngineClient } from '../scheduler/types.ts';
import { openTokenizer } from '../tokenizer/open.ts';
import type { Tokenizer } from '../tokenizer/types.ts';
import { type LoadOptions, loadEngine } from './load-engine.ts';
import type { SamplingFlags } from './options.ts';
import { note, showProgress } from './output.ts';

export interface Partner {
  readonly engine: EngineClient;
  readonly tokenizer: Tokenizer;
  /** What the model's file recommends. */
  readonly sampling: SamplingOptions;
}

/** Loads the model, with progress on stderr. */
export async function startPartner(loadOptions: LoadOptions): Promise<Partner> {
  const tokenizer = await openTokenizer(loadOptions.model);
  const sampling = samplingDefaults(await openGguf(loadOptions.model));
  const progress = showProgress('loading');
  const engine = await startLocalEngine({
    loadEngine,
    loadOptions,
    onProgress: ({ bytesRead, bytesTotal }) => progress.update(bytesRead, bytesTotal),
  }).finally(() => progress.stop());
  return { engine, tokenizer, sampling };
}

export interface Turn {
  readonly messages: readonly Message[];
  readonly tools?: readonly Tool[];
  readonly sampling: SamplingOptions;
  readonly maxTokens: number;
  readonly signal?: AbortSignal;
}

/** Has the model answer; `hear` gets every event as it comes. */
export async function answer(
  { engine, tokenizer }: Partner,
  turn: Turn,
  hear: (event: ChatStreamEvent) => void,
): Promise<{ readonly message: Message; readonly finished: ChatFinished }> {
  const conversation: Conversation = { messages: turn.messages, tools: turn.tools ?? [], templateOptions: {} };
  const request = {
    conversation,
    sampling: turn.sampling,
    maxTokens: null,
    stopStrings: [],
    stopTokens: [],
    ignoreEndOfTurn: false,
    toolCalls: true,
    parallelToolCalls: true,
  };
  let text = '';
  let finished: ChatFinished | null = null;
  for await (const event of chat(engine, tokenizer, { ...request, maxTokens: turn.maxTokens }, turn.signal)) {
    hear(event);
    if (event.type === 'text') text += event.text;
    if (event.type === 'finished') finished = event;
  }
  if (finished === null) throw new Error('the chat ended without its last event');
  const toolCalls = finished.calls.map(({ id, name, arguments: json }) => ({ id, name, arguments: json }));
  return { message: { role: 'assistant', content: text, ...(toolCalls.length > 0 && { toolCalls }) }, finished };
}

/** The sampling that the flags ask for, over the model's own recommendation; without a seed, a fresh one. */
export function samplingFrom(
  defaults: SamplingOptions,
  flags: Pick<SamplingFlags, 'temperature' | 'topP' | 'seed'>,
): SamplingOptions {
  const { temperature, topP, seed } = flags;
  return {
    ...defaults,
    seed: seed ?? randomInt(2 ** 32),
    ...(temperature !== undefined && { temperature }),
    ...(topP !== undefined && { topP }),
  };
}

/** Shows text on stdout as it comes, and reasoning dimmed on stderr. */
export function showEvent(event: ChatStreamEvent): void {
  if (event.type === 'text') process.stdout.write(event.text);
  else if (event.type === 'reasoning')
    process.stderr.write(process.stderr.isTTY ? `\u001b[2m${event.text}\u001b[0m` : event.text);
  else if (event.type === 'tool-call') process.stdout.write(`${event.index > 0 ? '\n' : ''}→ ${event.name} `);
  else if (event.type === 'tool-arguments') process.stdout.write(event.text);
}

export interface Rates {
  readonly promptTokens: number;
  readonly promptPerSecond: number;
  readonly decodedTokens: number;
  readonly decodedPerSecond: number;
}

/** Tokens per second of one answer. The first token comes with the prompt, so decoding begins at the second. */
export function ratesOf({ timing, cachedTokens }: ChatFinished): Rates {
  const rate = (tokens: number, milliseconds: number) =>
    milliseconds > 0 && tokens > 0 ? (1000 * tokens) / milliseconds : 0;
  return {
    promptTokens: timing.promptTokens,
    promptPerSecond: rate(timing.promptTokens - cachedTokens, timing.promptMilliseconds),
    decodedTokens: timing.decodedTokens,
    decodedPerSecond: rate(timing.decodedTokens - 1, timing.decodeMilliseconds),
  };
}

export function noteRates(finished: ChatFinished): void {
  const { promptTokens, promptPerSecond, decodedTokens, decodedPerSecond } = ratesOf(finished);
  note(
    `[prompt ${promptTokens} tokens, ${promptPerSecond.toFixed(0)} tokens/s; answer ${decodedTokens} tokens, ${decodedPerSecond.toFixed(1)} tokens/s]`,
  );
}
