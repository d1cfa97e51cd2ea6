import type { TextEvent, TextFinished, TextRequest } from '../complete-text.ts';
import type { Indexed } from '../merge.ts';
import type { ParsedCompletionRequest } from './completion-request.ts';
import { type CompletionLogprobs, CompletionLogprobsPrinter, joinedLogprobs, type TokenNames } from './logprobs.ts';
import { type CompletionIdentity, type Usage, usageOf } from './to-chunks.ts';

export interface TextChoice {
  readonly index: number;
  readonly text: string;
  readonly logprobs: CompletionLogprobs | null;
  readonly finish_reason: TextFinished['reason'] | null;
}

/** An answer, or a piece of one: the shape is the same. */
export interface TextCompletion {
  readonly id: string;
  readonly object: 'text_completion';
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
  readonly choices: readonly TextChoice[];
  readonly usage?: Usage | null;
}

type Events = AsyncIterable<Indexed<TextEvent>>;

/** The continuations as the chunks of a stream; the last piece of each choice says why it ended. */
export async function* toTextChunks(
  events: Events,
  wanted: ParsedCompletionRequest,
  names: TokenNames,
  identity: CompletionIdentity,
): AsyncGenerator<TextCompletion, void, void> {
  const usage = wanted.includeUsage ? { usage: null } : {};
  const ends: TextFinished[] = [];
  for await (const choice of pieces(events, wanted, names, ends))
    yield { ...head(identity), choices: [choice], ...usage };
  if (wanted.includeUsage) yield { ...head(identity), choices: [], usage: usageOf(ends, wanted.choices) };
}

/** All continuations as one answer. */
export async function toTextCompletion(
  events: Events,
  wanted: ParsedCompletionRequest,
  names: TokenNames,
  identity: CompletionIdentity,
): Promise<TextCompletion> {
  const parts = wanted.requests.map((): TextChoice[] => []);
  const ends: TextFinished[] = [];
  for await (const piece of pieces(events, wanted, names, ends)) parts[piece.index]?.push(piece);
  const choices = parts.map((ofChoice, index) => ({
    index,
    text: ofChoice.map(({ text }) => text).join(''),
    logprobs: wantsLogprobs(wanted) ? joinedLogprobs(ofChoice.flatMap(({ logprobs }) => logprobs ?? [])) : null,
    finish_reason: ofChoice.at(-1)?.finish_reason ?? null,
  }));
  return { ...head(identity), choices, usage: usageOf(ends, wanted.choices) };
}

/** What each event says of its choice. `ends` collects how the choices ended, at their indices. */
async function* pieces(
  events: Events,
  wanted: ParsedCompletionRequest,
  names: TokenNames,
  ends: TextFinished[],
): AsyncGenerator<TextChoice, void, void> {
  const printers = wanted.requests.map(() => new CompletionLogprobsPrinter(names));
  for await (const [index, event] of events) {
    const printer = printers[index] as CompletionLogprobsPrinter;
    const piece = (text: string, logprobs: CompletionLogprobs | null): TextChoice => ({
      index,
      text,
      logprobs: wantsLogprobs(wanted) ? logprobs : null,
      finish_reason: null,
    });
    switch (event.type) {
      case 'started': {
        if (!wanted.echo) break;
        const { prompt } = wanted.requests[index] as TextRequest;
        yield piece(names.tokenizer.decode(prompt), printer.first(prompt[0] as number));
        break;
      }
      case 'prompt-logprobs':
        yield piece('', printer.of(event.tokens));
        break;
      case 'text':
        yield piece(event.text, printer.of(event.logprobs ?? []));
        break;
      case 'finished':
        ends[index] = event;
        yield { ...piece(event.text, printer.of(event.logprobs)), finish_reason: event.reason };
    }
  }
}

function wantsLogprobs({ requests }: ParsedCompletionRequest): boolean {
  return requests[0]?.topLogprobs !== undefined;
}

function head({ id, created, model, fingerprint }: CompletionIdentity) {
  return { id, object: 'text_completion' as const, created, model, system_fingerprint: fingerprint };
}
