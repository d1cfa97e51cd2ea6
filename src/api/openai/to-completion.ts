import type { TokenLogprobs } from '../../sampling/logprobs.ts';
import type { ChatFinished, ChatStreamEvent } from '../complete.ts';
import type { Indexed } from '../merge.ts';
import { type ChatLogprobs, chatLogprobs, type TokenNames } from './logprobs.ts';
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
  readonly choices: readonly AnswerChoice[];
  readonly usage: Usage;
}

export interface AnswerChoice {
  readonly index: number;
  readonly message: AnswerMessage;
  readonly logprobs: ChatLogprobs | null;
  readonly finish_reason: ChatFinished['reason'];
}

/** The answers, whole. */
export async function toCompletion(
  events: AsyncIterable<Indexed<ChatStreamEvent>>,
  identity: CompletionIdentity,
  names: TokenNames,
): Promise<ChatCompletion> {
  const collected: Collected[] = [];
  for await (const [index, event] of events) {
    collected[index] ??= new Collected();
    collected[index].add(event);
  }
  return {
    id: identity.id,
    object: 'chat.completion',
    created: identity.created,
    model: identity.model,
    system_fingerprint: identity.fingerprint,
    choices: collected.map((one, index) => one.choice(index, names)),
    usage: usageOf(collected.map((one) => one.end)),
  };
}

/** One answer while it arrives. */
class Collected {
  #content = '';
  #reasoning = '';
  /** Null until some come: they were not asked for. */
  #logprobs: TokenLogprobs[] | null = null;
  #finished: ChatFinished | undefined;

  add(event: ChatStreamEvent): void {
    if (event.type === 'reasoning') this.#reasoning += event.text;
    else if (event.type === 'finished') this.#finished = event;
    else if (event.type === 'text') {
      this.#content += event.text;
      this.#logprobs ??= event.logprobs ? [] : null;
      this.#logprobs?.push(...(event.logprobs ?? []));
    }
  }

  get end(): ChatFinished {
    // chat() ends with `finished` or throws.
    return this.#finished as ChatFinished;
  }

  choice(index: number, names: TokenNames): AnswerChoice {
    return {
      index,
      message: toAnswer(this.#content, this.#reasoning, this.end),
      logprobs: this.#logprobs && chatLogprobs(this.#logprobs, names),
      finish_reason: this.end.reason,
    };
  }
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
