import { perigeeError } from '../../errors.ts';
import type { TextRequest } from '../complete-text.ts';
import type { CompletionRequest } from './completion-schema.ts';
import { toAnswerConstraint } from './constraint.ts';
import { generationOptions, knownToken, samplingOfChoice, type ToRequestContext } from './generation-options.ts';
import { refuseUnsupportedCompletion } from './unsupported.ts';
import { fieldInvalid, validateCompletionRequest } from './validate.ts';

/** OpenAI's default for this route. */
const defaultMaxTokens = 16;
/** One request shall not fill memory with answers. */
const mostChoices = 2048;

export interface ParsedCompletionRequest {
  /** One for each answer: those to the first prompt, those to the second, and so on. */
  readonly requests: readonly TextRequest[];
  /** Answers to each prompt. */
  readonly choices: number;
  /** The answer begins with the prompt. */
  readonly echo: boolean;
  readonly model: string | undefined;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  /** Tokens are shown as "token_id:17". */
  readonly tokensAsIds: boolean;
}

/**
 * Reads a parsed JSON body. Names of control tokens in prompts are read as such: a text may be a rendered template. Throws
 * FIELD_INVALID, FIELD_UNSUPPORTED and PROMPT_EMPTY.
 */
export function toCompletionRequest(body: unknown, context: ToRequestContext): ParsedCompletionRequest {
  const fields = validateCompletionRequest(body);
  refuseUnsupportedCompletion(fields);
  const { n: choices = 1, echo = false, logprobs } = fields;
  const prompts = toPrompts(fields, context);
  if (prompts.length * choices > mostChoices) {
    throw fieldInvalid('n', `so that prompts times n are at most ${mostChoices}`, choices);
  }
  const constraint = toAnswerConstraint(fields.response_format);
  const options = generationOptions(fields, context);
  const answer = (prompt: readonly number[], index: number): TextRequest => ({
    ...options,
    prompt,
    sampling: samplingOfChoice(options.sampling, index),
    maxTokens: fields.max_tokens ?? defaultMaxTokens,
    ...(logprobs !== undefined && { topLogprobs: logprobs }),
    promptLogprobs: echo && logprobs !== undefined,
    constraint,
  });
  return {
    requests: prompts.flatMap((prompt) => Array.from({ length: choices }, (_, index) => answer(prompt, index))),
    choices,
    echo,
    model: fields.model,
    stream: fields.stream ?? false,
    includeUsage: fields.stream_options?.include_usage ?? false,
    tokensAsIds: fields.return_tokens_as_token_ids ?? false,
  };
}

function toPrompts({ prompt }: CompletionRequest, { tokenizer }: ToRequestContext): (readonly number[])[] {
  const read = (one: string | readonly number[], field: string): readonly number[] => {
    const ids = typeof one === 'string' ? tokenizer.encode(one, { specials: true }) : one;
    if (ids.length === 0) throw perigeeError('PROMPT_EMPTY', {}, { param: field });
    if (typeof one !== 'string') for (const [i, id] of one.entries()) knownToken(id, `${field}.${i}`, tokenizer);
    return ids;
  };
  if (isList(prompt)) return prompt.map((one, i) => read(one, `prompt.${i}`));
  return [read(prompt, 'prompt')];
}

function isList(prompt: CompletionRequest['prompt']): prompt is string[] | number[][] {
  return Array.isArray(prompt) && typeof prompt[0] !== 'number';
}
