/** The bodies of POST /tokenize and /detokenize, as vLLM has them. */
import { Type } from '@sinclair/typebox';
import { renderPrompt } from '../../chat/prompt.ts';
import type { Tokenizer } from '../../tokenizer/types.ts';
import { anyValue, flag, integer, most, optional, text } from './fields.ts';
import { knownToken } from './generation-options.ts';
import { chatCompletionRequest } from './schema.ts';
import { toChatRequest } from './to-request.ts';
import { fieldInvalid, validated, withoutNulls } from './validate.ts';

const { messages, tools, chat_template_kwargs, reasoning_effort, thinking, chat_template } =
  chatCompletionRequest.properties;

export const tokenizeRequest = Type.Object(
  {
    model: optional(text("the model's name")),
    prompt: optional(text()),
    messages: optional(messages),
    tools,
    chat_template_kwargs,
    reasoning_effort,
    thinking,
    chat_template,
    add_generation_prompt: optional(flag),
    continue_final_message: optional(flag),
    return_token_strs: optional(flag),
    // No vocabulary of this family asks for tokens around a text.
    add_special_tokens: anyValue,
  },
  { description: 'a JSON object with prompt or messages' },
);

export const detokenizeRequest = Type.Object(
  {
    model: optional(text("the model's name")),
    tokens: Type.Array(integer(0, most, 'a token id'), { description: 'a list of token ids' }),
  },
  { description: 'a JSON object with tokens' },
);

export interface ParsedTokenizeRequest {
  readonly tokens: readonly number[];
  readonly model: string | undefined;
  /** Each token's text is wanted as well. */
  readonly withTexts: boolean;
}

/** Token ids of a text, where names of control tokens are read as such, or of a chat as the model would get it. */
export function toTokenizeRequest(body: unknown, tokenizer: Tokenizer): ParsedTokenizeRequest {
  const fields = validated(tokenizeRequest, withoutNulls(body));
  const { prompt, model, return_token_strs: withTexts = false } = fields;
  if ((prompt === undefined) === (fields.messages === undefined)) {
    throw fieldInvalid('prompt', "a text, unless there are 'messages'", prompt);
  }
  if (prompt !== undefined) return { tokens: tokenizer.encode(prompt, { specials: true }), model, withTexts };
  const { conversation } = toChatRequest(body, { tokenizer }).request;
  return { tokens: renderPrompt(conversation, tokenizer).ids, model, withTexts };
}

/** The token ids to be turned into text. */
export function toDetokenizeRequest(body: unknown, tokenizer: Tokenizer) {
  const { tokens, model } = validated(detokenizeRequest, withoutNulls(body));
  for (const [i, token] of tokens.entries()) knownToken(token, `tokens.${i}`, tokenizer);
  return { tokens, model };
}

/** What lm-eval and others need to use this tokenizer from afar. */
export function tokenizerInfo(tokenizer: Tokenizer, contextTokens: number) {
  const names = new Map([...tokenizer.specials].map(([name, id]) => [id, name]));
  const nameOf = (id: number | null) => (id === null ? null : (names.get(id) ?? null));
  return {
    tokenizer_class: 'TikTokenTokenizer',
    model_max_length: contextTokens,
    add_bos_token: false,
    add_eos_token: false,
    bos_token: nameOf(tokenizer.bosToken),
    eos_token: nameOf(tokenizer.eosToken),
    pad_token: nameOf(tokenizer.padToken),
    unk_token: null,
    additional_special_tokens: [...tokenizer.specials.keys()],
    chat_template: tokenizer.chatTemplate,
  };
}
