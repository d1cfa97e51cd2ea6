import { describe, expect, it } from 'vitest';
import { type ChatRequest, chat } from '../../src/api/complete.ts';
import { merge } from '../../src/api/merge.ts';
import { type ChatCompletionChunk, toChunks } from '../../src/api/openai/to-chunks.ts';
import { toCompletion } from '../../src/api/openai/to-completion.ts';
import { toChatRequest } from '../../src/api/openai/to-request.ts';
import { byteTokenizer, thinkingSpecials } from '../chat/support.ts';
import { collect, fakeEngine } from './support.ts';

const tokenizer = byteTokenizer({ specials: thinkingSpecials });
const identity = { id: 'chatcmpl-1', created: 1_700_000_000, model: 'nano', fingerprint: 'perigee-test' };
const f = { type: 'function', function: { name: 'get_weather', parameters: { type: 'object' } } };
const begin = '<|tool_calls_section_begin|>';
const call = (args: string) =>
  `<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>${args}<|tool_call_end|>`;

function request(fields: object): ChatRequest {
  return toChatRequest({ messages: [{ role: 'user', content: 'Hi' }], tools: [f], ...fields }, { tokenizer }).request;
}
const names = { tokenizer, asIds: false };
const events = (script: string, fields: object = {}) => {
  const answer = (signal: AbortSignal) => chat(fakeEngine(tokenizer, script), tokenizer, request(fields), signal);
  return merge([answer], 1, new AbortController().signal);
};
const stream = (script: string, fields: object = {}, includeUsage = true) =>
  collect(toChunks(events(script, fields), identity, { includeUsage, names }));
const whole = (script: string, fields: object = {}) => toCompletion(events(script, fields), identity, names);

const scripts: Record<string, [script: string, fields: object, finish: string]> = {
  text: ['Hello 世界<|im_end|>', {}, 'stop'],
  'reasoning and text': ['<think>Hm</think>Hello<|im_end|>', {}, 'stop'],
  'a text cut by length': ['Hello', { max_tokens: 3 }, 'length'],
  'a stop string': ['Hello STOP', { stop: 'STOP' }, 'stop'],
  'two calls': [
    `One moment.${begin}${call('{"city": "Beijing"}')}${call('{"city": "上海"}')}<|tool_calls_section_end|><|im_end|>`,
    {},
    'tool_calls',
  ],
  'a call alone': [`${begin}${call('')}<|im_end|>`, {}, 'tool_calls'],
  'a call cut by length': [`${begin}${call('{"city": "Beijing"}')}`, { max_tokens: 40 }, 'length'],
  'reasoning cut by length': ['<think>Hm, let me', { max_tokens: 5 }, 'length'],
  nothing: ['<|im_end|>', {}, 'stop'],
};

describe('a stream of chunks', () => {
  for (const [name, [script, fields, finish]] of Object.entries(scripts)) {
    it(`of ${name} has OpenAI's order`, async () => {
      const chunks = await stream(script, fields);
      for (const chunk of chunks) {
        const { choices, usage, ...rest } = chunk;
        expect(rest).toEqual({
          id: 'chatcmpl-1',
          object: 'chat.completion.chunk',
          created: 1_700_000_000,
          model: 'nano',
          system_fingerprint: 'perigee-test',
        });
      }
      const [first, ...others] = chunks;
      expect(first?.choices[0]?.delta).toEqual({ role: 'assistant', content: '' });
      expect(others.flatMap((chunk) => chunk.choices).some(({ delta }) => 'role' in delta)).toBe(false);
      expect(chunks.slice(0, -1).every((chunk) => chunk.usage === null && chunk.choices.length === 1)).toBe(true);
      const reasons = chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.finish_reason));
      expect(reasons).toEqual([...reasons.slice(0, -1).map(() => null), finish]);
      const [last, usage] = chunks.slice(-2);
      expect(last?.choices[0]?.delta).toEqual({});
      expect(last?.choices[0]?.usage).toEqual(usage?.usage);
      expect(usage?.choices).toEqual([]);
      const counts = usage!.usage!;
      expect(counts.total_tokens).toBe(counts.prompt_tokens + counts.completion_tokens);
      expect(counts.prompt_tokens_details.cached_tokens).toBe(3);
    });

    it(`of ${name} adds up to the answer in one piece`, async () => {
      const completion = await whole(script, fields);
      expect(assembled(await stream(script, fields))).toEqual(completion.choices[0]);
      expect(completion.choices[0]?.finish_reason).toBe(finish);
    });
  }

  it('says nothing of usage unless asked', async () => {
    const chunks = await stream('Hi<|im_end|>', {}, false);
    expect(chunks.some((chunk) => 'usage' in chunk)).toBe(false);
    expect(chunks.at(-1)?.choices[0]).toEqual({ index: 0, delta: {}, logprobs: null, finish_reason: 'stop' });
  });

  it('names each tool call once, then sends arguments alone', async () => {
    const chunks = await stream(scripts['two calls']![0]);
    const deltas = chunks.flatMap((chunk) => chunk.choices.flatMap(({ delta }) => delta.tool_calls ?? []));
    const heads = deltas.filter((delta) => 'id' in delta);
    expect(heads).toEqual(
      [0, 1].map((index) => ({
        index,
        id: `functions.get_weather:${index}`,
        type: 'function',
        function: { name: 'get_weather', arguments: '' },
      })),
    );
    const rest = deltas.filter((delta) => !('id' in delta));
    expect(rest.every((delta) => Object.keys(delta).join() === 'index,function')).toBe(true);
    const argumentsOf = (index: number) =>
      rest
        .filter((d) => d.index === index)
        .map((d) => d.function.arguments)
        .join('');
    expect([0, 1].map((index) => JSON.parse(argumentsOf(index)))).toEqual([{ city: 'Beijing' }, { city: '上海' }]);
  });

  it('has no U+FFFD for characters that arrive in parts', async () => {
    const chunks = await stream('né 世界 👩‍👩‍👧<|im_end|>');
    const text = chunks.flatMap((chunk) => chunk.choices.map(({ delta }) => delta.content ?? '')).join('');
    expect(text).toBe('né 世界 👩‍👩‍👧');
  });
});

describe('an answer in one piece', () => {
  it('has null content beside tool calls alone, and says so of a refusal', async () => {
    const { message } = (await whole(scripts['a call alone']![0])).choices[0]!;
    expect(message).toEqual({
      role: 'assistant',
      content: null,
      refusal: null,
      tool_calls: [
        { id: 'functions.get_weather:0', type: 'function', function: { name: 'get_weather', arguments: '{}' } },
      ],
    });
  });
  it('has an empty text when the model said nothing', async () => {
    expect((await whole('<|im_end|>')).choices[0]?.message).toEqual({ role: 'assistant', content: '', refusal: null });
  });
  it('counts tokens', async () => {
    const { usage } = await whole('<think>Hm</think>Hello<|im_end|>');
    expect(usage.completion_tokens).toBe(10);
    expect(usage.completion_tokens_details.reasoning_tokens).toBe(4);
  });
  it('has no calls under tool_choice none', async () => {
    const { message, finish_reason } = (await whole(scripts['two calls']![0], { tool_choice: 'none' })).choices[0]!;
    expect(message).toEqual({ role: 'assistant', content: 'One moment.', refusal: null });
    expect(finish_reason).toBe('stop');
  });
});

/** Puts chunks together as a client does. */
function assembled(chunks: readonly ChatCompletionChunk[]) {
  let content = '';
  let reasoning = '';
  let finish: string | null = null;
  const calls: { id: string; type: 'function'; function: { name: string; arguments: string } }[] = [];
  for (const { delta, finish_reason } of chunks.flatMap((chunk) => chunk.choices)) {
    content += delta.content ?? '';
    reasoning += delta.reasoning_content ?? '';
    finish = finish_reason ?? finish;
    for (const { index, id, function: part } of delta.tool_calls ?? []) {
      if (id !== undefined) calls[index] = { id, type: 'function', function: { name: part.name!, arguments: '' } };
      calls[index]!.function.arguments += part.arguments;
    }
  }
  const silent = content === '' && (calls.length > 0 || reasoning !== '');
  const message = {
    role: 'assistant',
    content: silent ? null : content,
    refusal: null,
    ...(reasoning === '' ? {} : { reasoning_content: reasoning, reasoning }),
    ...(calls.length === 0 ? {} : { tool_calls: calls }),
  };
  return { index: 0, message, logprobs: null, finish_reason: finish };
}
