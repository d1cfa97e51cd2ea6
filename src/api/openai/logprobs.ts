/** Log-probabilities as OpenAI's two completion routes print them. */
import type { TokenLogprobs } from '../../sampling/logprobs.ts';
import type { StreamDecoder, Tokenizer } from '../../tokenizer/types.ts';

/** JSON has no -Infinity; vLLM says -9999 for a token that cannot come. */
const least = -9999;

export interface ChatTokenLogprob {
  readonly token: string;
  readonly logprob: number;
  /** The token's bytes; they may be a part of a character only. */
  readonly bytes: readonly number[];
}

export interface ChatLogprobs {
  readonly content: readonly (ChatTokenLogprob & { readonly top_logprobs: readonly ChatTokenLogprob[] })[];
  readonly refusal: null;
}

/** How tokens are printed. */
export interface TokenNames {
  readonly tokenizer: Tokenizer;
  /** As "token_id:17" instead of as text. */
  readonly asIds: boolean;
}

function nameOf(id: number, { tokenizer, asIds }: TokenNames): string {
  return asIds ? `token_id:${id}` : tokenizer.decode([id]);
}

export function chatLogprobs(entries: readonly TokenLogprobs[], names: TokenNames): ChatLogprobs {
  const print = (id: number, logprob: number): ChatTokenLogprob => ({
    token: nameOf(id, names),
    logprob: Math.max(logprob, least),
    bytes: [...names.tokenizer.bytes(id)],
  });
  return {
    content: entries.map(({ token, logprob, top }) => ({
      ...print(token, logprob),
      top_logprobs: top.map(([id, value]) => print(id, value)),
    })),
    refusal: null,
  };
}

/** Lists of one entry for each token. The first token of a prompt has no probability, as nothing foretells it. */
export interface CompletionLogprobs {
  readonly tokens: string[];
  readonly token_logprobs: (number | null)[];
  readonly top_logprobs: (Readonly<Record<string, number>> | null)[];
  /** Characters of the text before the token. */
  readonly text_offset: number[];
}

/** Prints one choice's tokens in their order, and counts where each is in the text. */
export class CompletionLogprobsPrinter {
  readonly #names: TokenNames;
  readonly #decoder: StreamDecoder;
  #offset = 0;

  constructor(names: TokenNames) {
    this.#names = names;
    this.#decoder = names.tokenizer.streamDecoder();
  }

  /** The first token of an echoed prompt. */
  first(token: number): CompletionLogprobs {
    const { tokens, text_offset } = this.of([{ token, logprob: 0, top: [] }]);
    return { tokens, token_logprobs: [null], top_logprobs: [null], text_offset };
  }

  of(entries: readonly TokenLogprobs[]): CompletionLogprobs {
    return {
      tokens: entries.map(({ token }) => nameOf(token, this.#names)),
      token_logprobs: entries.map(({ logprob }) => Math.max(logprob, least)),
      top_logprobs: entries.map((entry) => this.#map(entry)),
      text_offset: entries.map(({ token }) => this.#advance(token)),
    };
  }

  /** The likeliest tokens and the one that is there. Where two are spelled alike the likelier stands for both. */
  #map({ token, logprob, top }: TokenLogprobs): Record<string, number> {
    const map = new Map<string, number>();
    for (const [id, value] of [...top, [token, logprob] as const]) {
      const name = nameOf(id, this.#names);
      map.set(name, Math.max(value, least, map.get(name) ?? least));
    }
    return Object.fromEntries(map);
  }

  #advance(token: number): number {
    const offset = this.#offset;
    this.#offset += [...this.#decoder.push(token)].length;
    return offset;
  }
}

/** Several pieces of one choice as one. */
export function joinedLogprobs(pieces: readonly CompletionLogprobs[]): CompletionLogprobs {
  return {
    tokens: pieces.flatMap(({ tokens }) => tokens),
    token_logprobs: pieces.flatMap(({ token_logprobs }) => token_logprobs),
    top_logprobs: pieces.flatMap(({ top_logprobs }) => top_logprobs),
    text_offset: pieces.flatMap(({ text_offset }) => text_offset),
  };
}
