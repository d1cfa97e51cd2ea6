/** The completions route as OpenAI's own client, and lm-eval, see it. */
import type OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { FakeRuntime } from '../scheduler/fake-runtime.ts';
import { type Harness, modelId, postJson, startLocal, tokenizer } from './harness.ts';

const says = 'one two three, 好🙂 four five';
const alphabet = tokenizer.encode(says);
/** Goes round in what it says, from wherever the prompt ends. */
const next = (history: readonly number[]) => alphabet[(alphabet.lastIndexOf(history.at(-1)!) + 1) % alphabet.length]!;

let server: Harness & { runtime: FakeRuntime };
beforeAll(async () => {
  server = await startLocal({ next, sequences: 4, outputs: 16 });
});
afterAll(() => server.close());

const base = { model: modelId, temperature: 0 };
const create = (fields: Partial<OpenAI.CompletionCreateParamsNonStreaming>) =>
  server.client.completions.create({ ...base, prompt: 'one', ...fields, stream: false });
const rest = says.slice('one'.length);

describe('a text', () => {
  test('is continued, up to sixteen tokens unless told otherwise', async () => {
    const answer = await create({});
    expect(answer).toMatchObject({ object: 'text_completion', model: modelId, id: expect.stringMatching(/^cmpl-/) });
    expect(answer.choices).toEqual([{ index: 0, text: expect.any(String), logprobs: null, finish_reason: 'length' }]);
    expect(answer.usage).toMatchObject({ prompt_tokens: 1, completion_tokens: 16, total_tokens: 17 });
    const whole = (await create({ max_tokens: alphabet.length - 1 })).choices[0]!.text;
    expect(whole).toBe(rest);
  });

  test('stops at a stop text or token', async () => {
    expect((await create({ stop: ['ee, 好', '🙂'] })).choices[0]).toMatchObject({
      text: ' two thr',
      finish_reason: 'stop',
    });
    const [, second] = alphabet;
    const answer = await server.client.completions.create({
      ...base,
      prompt: 'one',
      // @ts-expect-error: vLLM's
      stop_token_ids: [second],
    });
    expect(answer.choices[0]).toMatchObject({ text: '', finish_reason: 'stop' });
  });

  test('may be several, and several answers to each, in the order of the prompts', async () => {
    const prompts = ['one', 'one two', 'three'];
    const answer = await create({ prompt: prompts, n: 2, max_tokens: 3 });
    expect(answer.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3, 4, 5]);
    const alone = await Promise.all(prompts.map((prompt) => create({ prompt, max_tokens: 3 })));
    expect(answer.choices.map(({ text }) => text)).toEqual(
      alone.flatMap(({ choices }) => [choices[0]!.text, choices[0]!.text]),
    );
    const promptTokens = alone.reduce((sum, { usage }) => sum + usage!.prompt_tokens, 0);
    expect(answer.usage).toMatchObject({ prompt_tokens: promptTokens, completion_tokens: 18 });
  });

  test('may be token ids, alone or in a batch larger than the queue', async () => {
    expect((await create({ prompt: alphabet.slice(0, 2), max_tokens: 2 })).choices[0]!.text).toBe(
      tokenizer.decode(alphabet.slice(2, 4)),
    );
    const batch = Array.from({ length: 100 }, (_, i) => alphabet.slice(0, 1 + (i % 5)));
    const { choices } = await create({ prompt: batch, max_tokens: 1 });
    expect(choices.map(({ text }) => text)).toEqual(batch.map((ids) => tokenizer.decode([next(ids)])));
  });

  test('is drawn anew for each of n answers, and again for the same seed', async () => {
    const wanted = { n: 4, temperature: 2, seed: 5, max_tokens: 6 };
    const texts = async () => (await create(wanted)).choices.map(({ text }) => text);
    const first = await texts();
    expect(new Set(first).size).toBeGreaterThan(1);
    expect(await texts()).toEqual(first);
  });
});

describe('a stream', () => {
  const stream = async (fields: object) => {
    const chunks: OpenAI.Completion[] = [];
    const wanted = { ...base, prompt: 'one', max_tokens: alphabet.length - 1, stream: true as const, ...fields };
    for await (const chunk of await server.client.completions.create(wanted)) chunks.push(chunk);
    const texts: string[] = [];
    for (const { index, text } of chunks.flatMap(({ choices }) => choices)) texts[index] = (texts[index] ?? '') + text;
    return { chunks, texts };
  };

  test('says the same in pieces, the last with the reason', async () => {
    const { chunks, texts } = await stream({});
    expect(texts).toEqual([rest]);
    expect(chunks.length).toBeGreaterThan(5);
    expect(chunks.map(({ choices }) => choices[0]!.finish_reason)).toEqual([
      ...Array(chunks.length - 1).fill(null),
      'length',
    ]);
    expect(chunks.at(-1)!.choices[0]!.text).not.toBe('');
    expect(chunks.some((chunk) => 'usage' in chunk)).toBe(false);
    expect(new Set(chunks.map(({ id, created, model, object }) => `${id} ${created} ${model} ${object}`)).size).toBe(1);
  });

  test('of several prompts interleaves their choices, and ends with the usage of all', async () => {
    const { chunks, texts } = await stream({ prompt: ['one', 'three'], n: 2, stream_options: { include_usage: true } });
    const whole = await create({ prompt: ['one', 'three'], n: 2, max_tokens: alphabet.length - 1 });
    expect(texts).toEqual(whole.choices.map(({ text }) => text));
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { total_tokens: whole.usage!.total_tokens } });
    expect(chunks.slice(0, -1).every(({ usage }) => usage === null)).toBe(true);
  });

  test('begins with the prompt under echo', async () => {
    expect((await stream({ echo: true })).texts).toEqual([says]);
  });

  test('has the same log-probabilities as an answer at once', async () => {
    const wanted = { echo: true, logprobs: 2, prompt: 'one two three' };
    const { chunks } = await stream({ ...wanted, max_tokens: 6 });
    const pieces = chunks.map(({ choices }) => choices[0]!.logprobs!);
    const { logprobs } = (await create({ ...wanted, max_tokens: 6 })).choices[0]!;
    expect(pieces.flatMap((piece) => piece.tokens!)).toEqual(logprobs!.tokens);
    expect(pieces.flatMap((piece) => piece.token_logprobs!)).toEqual(logprobs!.token_logprobs);
    expect(pieces.flatMap((piece) => piece.text_offset!)).toEqual(logprobs!.text_offset);
  });
});

describe('log-probabilities', () => {
  test('are none unless asked for, and of the chosen tokens alone for 0', async () => {
    const { logprobs } = (await create({ logprobs: 0, max_tokens: 3 })).choices[0]!;
    expect(logprobs!.tokens).toEqual(alphabet.slice(1, 4).map((id) => tokenizer.decode([id])));
    expect(logprobs!.top_logprobs!.map((map) => Object.keys(map).length)).toEqual([1, 1, 1]);
  });

  test('place every token in the text, also where a character has several', async () => {
    const { text, logprobs } = (await create({ logprobs: 1, max_tokens: alphabet.length - 1, echo: true })).choices[0]!;
    const characters = [...text];
    logprobs!.tokens!.forEach((token, i) => {
      const start = logprobs!.text_offset![i]!;
      if (!token.includes('\ufffd')) expect(characters.slice(start, start + [...token].length).join('')).toBe(token);
    });
    expect(logprobs!.tokens).toHaveLength(alphabet.length);
  });

  // lm_eval/models/openai_completions.py: it cuts [ctxlen:-1] from lists that must hold prompt and one more token.
  test.each([0, 1])('of lm-eval: echo of token ids with max_tokens %i', async (maxTokens) => {
    const prompts = [alphabet.slice(0, 5), [...alphabet.slice(0, 3), 7, 8]];
    const { choices } = await create({ prompt: prompts, echo: true, logprobs: 1, max_tokens: maxTokens, seed: 1234 });
    choices.forEach(({ text, logprobs, finish_reason }, i) => {
      const prompt = prompts[i]!;
      expect(finish_reason).toBe('length');
      const whole = maxTokens === 0 ? prompt : [...prompt, next(prompt)];
      expect(text).toBe(tokenizer.decode(whole));
      expect(logprobs!.token_logprobs).toHaveLength(whole.length);
      expect([logprobs!.token_logprobs![0], logprobs!.top_logprobs![0]]).toEqual([null, null]);
      whole.slice(1).forEach((token, at) => {
        const logprob = logprobs!.token_logprobs![at + 1]!;
        const likeliest = Math.max(...Object.values(logprobs!.top_logprobs![at + 1]!));
        expect(logprob === likeliest).toBe(token === next(whole.slice(0, at + 1)));
        expect(logprobs!.tokens![at + 1]).toBe(tokenizer.decode([token]));
      });
    });
  });

  test('have the stop token that ended the answer, so that lists are as long as usage says', async () => {
    const eos = tokenizer.eosToken!;
    const answer = await server.client.completions.create({
      ...base,
      prompt: 'one',
      logprobs: 1,
      logit_bias: { [eos]: 100 },
    });
    expect(answer.choices[0]).toMatchObject({ text: '', finish_reason: 'stop' });
    expect(answer.choices[0]!.logprobs!.tokens).toEqual([tokenizer.decode([eos])]);
    expect(answer.usage!.completion_tokens).toBe(1);
  });
});

describe('what cannot work', () => {
  test.each<[object, string]>([
    [{ best_of: 2 }, 'best_of'],
    [{ suffix: '.' }, 'suffix'],
    [{ prompt: '' }, 'prompt'],
    [{ prompt: [tokenizer.vocabularySize] }, 'prompt.0'],
    [{ logprobs: 21 }, 'logprobs'],
    [{ stream_options: { include_usage: true } }, 'stream_options'],
    [{ response_format: { type: 'poem' } }, 'response_format'],
  ])('%j: 400 that names the field', async (fields, param) => {
    const { status, body } = await postJson(`${server.url}/v1/completions`, { ...base, prompt: 'one', ...fields });
    expect(status).toBe(400);
    expect(body.error).toMatchObject({ type: 'invalid_request_error', param: expect.stringContaining(param) });
  });

  test('a prompt longer than the context, in a batch too', async () => {
    const long = Array(5000).fill(alphabet[0]);
    await expect(create({ prompt: [[alphabet[0]!], long] })).rejects.toMatchObject({
      status: 400,
      code: 'context_length_exceeded',
    });
    expect((await create({})).choices).toHaveLength(1);
  });
});
