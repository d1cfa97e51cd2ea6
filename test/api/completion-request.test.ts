import { describe, expect, it } from 'vitest';
import { toCompletionRequest } from '../../src/api/openai/completion-request.ts';
import { PerigeeError } from '../../src/errors.ts';
import { neutralSampling } from '../../src/sampling/defaults.ts';
import { byteTokenizer, thinkingSpecials } from '../chat/support.ts';

const tokenizer = byteTokenizer({ specials: thinkingSpecials });
const end = tokenizer.specials.get('<|im_end|>')!;
const read = (fields: object) => toCompletionRequest({ prompt: 'Hi', ...fields }, { tokenizer });
const refused = (fields: object) => {
  try {
    read(fields);
  } catch (error) {
    if (error instanceof PerigeeError) return error;
    throw error;
  }
  throw new Error('the request was accepted');
};

describe('a completion request', () => {
  it('may be as small as a prompt', () => {
    const { requests, ...rest } = read({});
    expect(rest).toEqual({
      choices: 1,
      echo: false,
      model: undefined,
      stream: false,
      includeUsage: false,
      tokensAsIds: false,
    });
    expect(requests).toEqual([
      {
        prompt: [72, 105],
        sampling: { ...neutralSampling, seed: expect.any(Number) },
        maxTokens: 16,
        stopStrings: [],
        stopTokens: [],
        ignoreEndOfTurn: false,
        minTokens: 0,
        promptLogprobs: false,
        constraint: null,
      },
    ]);
  });

  it.each<[string, unknown, number[][]]>([
    ['a text', 'ab', [[97, 98]]],
    ['texts', ['a', 'b'], [[97], [98]]],
    ['token ids', [5, 6], [[5, 6]]],
    ['lists of token ids', [[5], [6, 7]], [[5], [6, 7]]],
    ['a text that names a control token', 'a<|im_end|>', [[97, end]]],
  ])('has a prompt that is %s', (_name, prompt, expected) => {
    expect(read({ prompt }).requests.map((request) => request.prompt)).toEqual(expected);
  });

  it('has n answers to each prompt, whose seeds differ and follow from the one given', () => {
    const { requests, choices } = read({ prompt: ['a', 'b'], n: 2, seed: 7 });
    expect(choices).toBe(2);
    expect(requests.map(({ prompt, sampling }) => [prompt[0], sampling.seed])).toEqual([
      [97, 7],
      [97, 8],
      [98, 7],
      [98, 8],
    ]);
  });

  it('asks for log-probabilities of the prompt when it is echoed', () => {
    expect(read({ logprobs: 0 }).requests[0]).toMatchObject({ topLogprobs: 0, promptLogprobs: false });
    expect(read({ logprobs: 3, echo: true, max_tokens: 0 }).requests[0]).toMatchObject({
      topLogprobs: 3,
      promptLogprobs: true,
      maxTokens: 0,
    });
    expect(read({ echo: true }).requests[0]).toMatchObject({ promptLogprobs: false });
  });

  it.each<[object, code: string, param: string]>([
    [{ prompt: undefined }, 'FIELD_INVALID', 'prompt'],
    [{ prompt: 3 }, 'FIELD_INVALID', 'prompt'],
    [{ prompt: [] }, 'FIELD_INVALID', 'prompt'],
    [{ prompt: [[]] }, 'FIELD_INVALID', 'prompt'],
    [{ prompt: ['a', 3] }, 'FIELD_INVALID', 'prompt'],
    [{ prompt: [1.5] }, 'FIELD_INVALID', 'prompt'],
    [{ prompt: [-1] }, 'FIELD_INVALID', 'prompt'],
    [{ prompt: [1, 2 ** 30] }, 'FIELD_INVALID', 'prompt.1'],
    [{ prompt: [[1], [2, 99_999]] }, 'FIELD_INVALID', 'prompt.1.1'],
    [{ prompt: '' }, 'PROMPT_EMPTY', 'prompt'],
    [{ prompt: ['a', ''] }, 'PROMPT_EMPTY', 'prompt.1'],
    [{ prompt: Array(1024).fill('a'), n: 3 }, 'FIELD_INVALID', 'n'],
    [{ max_tokens: -1 }, 'FIELD_INVALID', 'max_tokens'],
    [{ logprobs: 21 }, 'FIELD_INVALID', 'logprobs'],
    [{ logprobs: true }, 'FIELD_INVALID', 'logprobs'],
    [{ stream_options: {} }, 'FIELD_INVALID', 'stream_options'],
    [{ best_of: 2 }, 'FIELD_UNSUPPORTED', 'best_of'],
    [{ suffix: 'x' }, 'FIELD_UNSUPPORTED', 'suffix'],
    [{ prompt_embeds: 'x' }, 'FIELD_UNSUPPORTED', 'prompt_embeds'],
    [{ use_beam_search: true }, 'FIELD_UNSUPPORTED', 'use_beam_search'],
  ])('%j is refused by name', (fields, code, param) => {
    const error = refused(fields);
    expect(error).toMatchObject({ code, status: 400 });
    expect(error.param).toMatch(new RegExp(`^${param.replaceAll('.', '\\.')}`));
  });
});
