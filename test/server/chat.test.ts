/** The chat route as OpenAI's own client sees it, and as the bytes say. */
import type OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Harness, modelId, reply, startLocal, tokenizer } from './harness.ts';

const greeting = 'Hello there, friend! 你好 🙂';
const call = (name: string, index: number, args: string) =>
  `<|tool_call_begin|>functions.${name}:${index}<|tool_call_argument_begin|>${args}<|tool_call_end|>`;
const section = (...calls: string[]) =>
  `<|tool_calls_section_begin|>${calls.join('')}<|tool_calls_section_end|><|im_end|>`;

let server: Harness & { runtime: { batches: readonly unknown[] } };
beforeAll(async () => {
  server = await startLocal({
    replies: [
      reply('## Return of functions.get_weather:0\n{"weather": "Sunny"}', 'It is sunny.<|im_end|>'),
      reply('How is the weather?', `Let me look.${section(call('get_weather', 0, '{"city": "Beijing"}'))}`),
      reply('Both?', section(call('get_weather', 0, '{"city":"Oslo"}'), call('get_weather', 1, '{"city":"Rome"}'))),
      reply('', `${greeting}<|im_end|>`),
    ],
  });
});
afterAll(() => server.close());

const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: 'user', content: 'Say hello' }];
const base = { model: modelId, messages, temperature: 0 };
const tools: OpenAI.ChatCompletionTool[] = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      description: 'Weather of a city',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  },
];

async function collect(stream: AsyncIterable<OpenAI.ChatCompletionChunk>) {
  const chunks: OpenAI.ChatCompletionChunk[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
  const finishes = chunks.flatMap((chunk) => chunk.choices[0]?.finish_reason ?? []);
  return { chunks, text, finishes };
}

/** The events of a stream, framed as they came. */
async function rawStream(body: Record<string, unknown>) {
  const response = await fetch(`${server.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...base, stream: true, ...body }),
  });
  return { headers: response.headers, text: await response.text() };
}

describe('an answer at once', () => {
  test('has text, reason and usage', async () => {
    const answer = await server.client.chat.completions.create(base);
    expect(answer).toMatchObject({
      object: 'chat.completion',
      model: modelId,
      id: expect.stringMatching(/^chatcmpl-/),
    });
    expect(answer.choices).toHaveLength(1);
    expect(answer.choices[0]).toMatchObject({
      index: 0,
      finish_reason: 'stop',
      message: { role: 'assistant', content: greeting, refusal: null },
    });
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage!;
    expect(total_tokens).toBe(prompt_tokens + completion_tokens);
    expect(completion_tokens).toBeGreaterThan(5);
  });

  test('the same prompt again is taken from the cache, but for one token', async () => {
    await server.client.chat.completions.create(base);
    const { usage } = await server.client.chat.completions.create(base);
    expect(usage!.prompt_tokens_details!.cached_tokens).toBe(usage!.prompt_tokens - 1);
  });

  test('content as a list of parts', async () => {
    const content = [
      { type: 'text' as const, text: 'Say ' },
      { type: 'text' as const, text: 'hello' },
    ];
    const answer = await server.client.chat.completions.create({ ...base, messages: [{ role: 'user', content }] });
    expect(answer.choices[0]!.message.content).toBe(greeting);
  });

  test('cut by max_tokens', async () => {
    const answer = await server.client.chat.completions.create({ ...base, max_tokens: 2 });
    expect(answer.choices[0]!.finish_reason).toBe('length');
    expect(answer.usage!.completion_tokens).toBe(2);
  });

  test('cut by a stop text, which is left out, wherever its tokens begin', async () => {
    const answer = await server.client.chat.completions.create({ ...base, stop: ['lo th', 'never'] });
    expect(answer.choices[0]).toMatchObject({ finish_reason: 'stop', message: { content: 'Hel' } });
  });
});

describe('a stream', () => {
  test('says the same in pieces, with one role and one finish', async () => {
    const { chunks, text, finishes } = await collect(
      await server.client.chat.completions.create({ ...base, stream: true }),
    );
    expect(text).toBe(greeting);
    expect(text).not.toContain('\ufffd');
    expect(finishes).toEqual(['stop']);
    expect(chunks[0]!.choices[0]!.delta).toMatchObject({ role: 'assistant' });
    expect(chunks.slice(1).some((chunk) => 'role' in (chunk.choices[0]?.delta ?? {}))).toBe(false);
    expect(new Set(chunks.map((chunk) => `${chunk.id} ${chunk.created} ${chunk.model} ${chunk.object}`)).size).toBe(1);
    expect(chunks.at(-1)!.choices[0]!.delta).toEqual({});
  });

  test('with include_usage ends in a chunk of usage alone', async () => {
    const options = { ...base, stream: true as const, stream_options: { include_usage: true } };
    const { chunks } = await collect(await server.client.chat.completions.create(options));
    const { usage } = await server.client.chat.completions.create(base);
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { total_tokens: usage!.total_tokens } });
  });

  test('cut by max_tokens or a stop text', async () => {
    const cut = await collect(await server.client.chat.completions.create({ ...base, stream: true, max_tokens: 2 }));
    expect(cut.finishes).toEqual(['length']);
    const stopped = await collect(
      await server.client.chat.completions.create({ ...base, stream: true, stop: 'lo th' }),
    );
    expect([stopped.text, stopped.finishes]).toEqual(['Hel', ['stop']]);
  });

  test('has the headers and frames of server-sent events, and [DONE]', async () => {
    const { headers, text } = await rawStream({});
    expect(headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    expect(headers.get('cache-control')).toBe('no-cache');
    expect(headers.get('x-accel-buffering')).toBe('no');
    expect(headers.get('content-encoding')).toBeNull();
    expect(headers.get('x-request-id')).toMatch(/^req-/);
    const events = text.split('\n\n');
    expect(events.pop()).toBe('');
    expect(events.pop()).toBe('data: [DONE]');
    for (const event of events) {
      expect(event).toMatch(/^data: \{.*\}$/);
      JSON.parse(event.slice('data: '.length));
    }
  });

  test('a request that cannot work gets a status, not a stream', async () => {
    const stream = server.client.chat.completions.create({ ...base, model: 'other', stream: true });
    await expect(stream).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
    const long = [{ role: 'user' as const, content: 'word '.repeat(5000) }];
    const tooLong = server.client.chat.completions.create({ ...base, messages: long, stream: true });
    await expect(tooLong).rejects.toMatchObject({ status: 400, code: 'context_length_exceeded' });
  });
});

describe('tools', () => {
  const ask = [{ role: 'user' as const, content: 'How is the weather?' }];

  test('the loop of the model card ends in an answer', async () => {
    const history: OpenAI.ChatCompletionMessageParam[] = [...ask];
    let reason: string | null = null;
    let rounds = 0;
    do {
      const { choices } = await server.client.chat.completions.create({
        ...base,
        messages: history,
        tools,
        tool_choice: 'auto',
      });
      const choice = choices[0]!;
      reason = choice.finish_reason;
      rounds++;
      if (reason !== 'tool_calls') {
        expect(choice.message.content).toBe('It is sunny.');
        continue;
      }
      history.push(choice.message);
      for (const toolCall of choice.message.tool_calls ?? []) {
        if (toolCall.type !== 'function') throw new Error('not a function');
        expect(toolCall.function.name).toBe('get_weather');
        expect(JSON.parse(toolCall.function.arguments)).toEqual({ city: 'Beijing' });
        history.push({ role: 'tool', tool_call_id: toolCall.id, content: '{"weather": "Sunny"}' });
      }
    } while (reason === 'tool_calls');
    expect(rounds).toBe(2);
  });

  test('a stream names each call once and adds its arguments', async () => {
    const { chunks, text, finishes } = await collect(
      await server.client.chat.completions.create({ ...base, messages: ask, tools, stream: true }),
    );
    expect(text).toBe('Let me look.');
    expect(finishes).toEqual(['tool_calls']);
    const deltas = chunks.flatMap((chunk) => chunk.choices[0]?.delta.tool_calls ?? []);
    expect(deltas[0]).toMatchObject({
      index: 0,
      id: 'functions.get_weather:0',
      type: 'function',
      function: { name: 'get_weather' },
    });
    expect(deltas.slice(1).every((delta) => delta.id === undefined && delta.function?.name === undefined)).toBe(true);
    expect(JSON.parse(deltas.map((delta) => delta.function?.arguments ?? '').join(''))).toEqual({ city: 'Beijing' });
  });

  test('parallel calls are indexed; only calls leave content null', async () => {
    const both = [{ role: 'user' as const, content: 'Both?' }];
    const { choices } = await server.client.chat.completions.create({ ...base, messages: both, tools });
    expect(choices[0]!.message.content).toBeNull();
    expect(choices[0]!.message.tool_calls!.map(({ id }) => id)).toEqual([
      'functions.get_weather:0',
      'functions.get_weather:1',
    ]);
    const { chunks } = await collect(
      await server.client.chat.completions.create({ ...base, messages: both, tools, stream: true }),
    );
    const indices = chunks.flatMap((chunk) => chunk.choices[0]?.delta.tool_calls ?? []).map(({ index }) => index);
    expect([...new Set(indices)]).toEqual([0, 1]);
  });
});

describe('several answers and what the model thought of them', () => {
  test('n answers come at once, each complete, and usage counts the prompt once', async () => {
    const one = await server.client.chat.completions.create(base);
    const answer = await server.client.chat.completions.create({ ...base, n: 3 });
    expect(answer.choices.map(({ index, message, finish_reason }) => [index, message.content, finish_reason])).toEqual(
      [0, 1, 2].map((index) => [index, greeting, 'stop']),
    );
    expect(answer.usage!.prompt_tokens).toBe(one.usage!.prompt_tokens);
    expect(answer.usage!.completion_tokens).toBe(3 * one.usage!.completion_tokens);
  });

  test('n streams are interleaved, each with its own role and finish', async () => {
    const options = { ...base, n: 3, stream: true as const, stream_options: { include_usage: true } };
    const { chunks } = await collect(await server.client.chat.completions.create(options));
    const choices = chunks.flatMap((chunk) => chunk.choices);
    for (const index of [0, 1, 2]) {
      const own = choices.filter((choice) => choice.index === index);
      expect(own.map(({ delta }) => delta.content ?? '').join('')).toBe(greeting);
      expect(own.filter(({ delta }) => delta.role === 'assistant')).toHaveLength(1);
      expect(own.flatMap(({ finish_reason }) => finish_reason ?? [])).toEqual(['stop']);
    }
    expect(chunks.filter((chunk) => chunk.choices.length === 0)).toHaveLength(1);
  });

  test('the tokens of log-probabilities are the text, in bytes too', async () => {
    const answer = await server.client.chat.completions.create({ ...base, logprobs: true, top_logprobs: 3 });
    const content = answer.choices[0]!.logprobs!.content!;
    expect(Buffer.from(content.flatMap(({ bytes }) => bytes!)).toString()).toBe(greeting);
    for (const { token, logprob, top_logprobs } of content) {
      expect(logprob).toBeLessThanOrEqual(0);
      expect(top_logprobs).toHaveLength(3);
      expect(top_logprobs[0]).toMatchObject({ token, logprob });
    }
    const none = await server.client.chat.completions.create({ ...base, logprobs: true });
    expect(none.choices[0]!.logprobs!.content![0]!.top_logprobs).toEqual([]);
    expect((await server.client.chat.completions.create(base)).choices[0]!.logprobs).toBeNull();
  });

  test('a stream has them beside its pieces', async () => {
    const options = { ...base, logprobs: true, top_logprobs: 2, stream: true as const };
    const { chunks } = await collect(await server.client.chat.completions.create(options));
    const content = chunks.flatMap((chunk) => chunk.choices[0]?.logprobs?.content ?? []);
    expect(Buffer.from(content.flatMap(({ bytes }) => bytes!)).toString()).toBe(greeting);
    expect(chunks[0]!.choices[0]!.logprobs).toBeNull();
  });

  test('a bias, a least length and both names of the limit change the answer', async () => {
    const [id] = tokenizer.encode('x');
    const biased = await server.client.chat.completions.create({
      ...base,
      logit_bias: { [id!]: 100 },
      max_completion_tokens: 3,
      max_tokens: 9,
    });
    expect(biased.choices[0]!.message.content).toBe('xxx');
    const long = { ...base, stop: ['lo th'], min_tokens: 9, max_tokens: 40 };
    const answer = await server.client.chat.completions.create(long);
    expect(answer.choices[0]).toMatchObject({ finish_reason: 'stop', message: { content: greeting } });
  });
});
