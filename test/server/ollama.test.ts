/** Ollama's routes as its own client sees them, and as the bytes say. */
import { Ollama } from 'ollama';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ask, contextTokens, type Harness, modelId, postJson, reply, startLocal, tokenizer } from './harness.ts';

const greeting = 'Hello there, friend! 你好 🙂';
const calls =
  '<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Beijing"}' +
  '<|tool_call_end|><|tool_calls_section_end|><|im_end|>';

let server: Harness;
let client: Ollama;
beforeAll(async () => {
  server = await startLocal({
    replies: [
      reply('## Return of functions.get_weather:0\nSunny', 'It is sunny.<|im_end|>'),
      reply('How is the weather?', `Let me look.${calls}`),
      reply('Go on', ' and on'),
      reply('', `${greeting}<|im_end|>`),
    ],
  });
  client = new Ollama({ host: server.url });
});
afterAll(() => server.close());

const messages = [{ role: 'user', content: 'Say hello' }];
const base = { model: modelId, messages, options: { temperature: 0 } };
const question = [{ role: 'user', content: 'How is the weather?' }];
const tools = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      description: 'Weather of a city',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  },
];

describe('POST /api/chat', () => {
  test('answers at once, with counts and nanoseconds', async () => {
    const answer = await client.chat(base);
    expect(answer).toMatchObject({
      model: modelId,
      message: { role: 'assistant', content: greeting },
      done: true,
      done_reason: 'stop',
    });
    expect(new Date(answer.created_at).getTime()).toBeGreaterThan(Date.now() - 60_000);
    expect(answer.prompt_eval_count).toBeGreaterThan(5);
    expect(answer.eval_count).toBeGreaterThan(5);
    const parts = answer.load_duration + answer.prompt_eval_duration + answer.eval_duration;
    for (const duration of [answer.total_duration, answer.eval_duration]) expect(Number.isInteger(duration)).toBe(true);
    expect(Math.abs(answer.total_duration - parts)).toBeLessThan(10);
    // In nanoseconds even a fake model takes more than a million.
    expect(answer.total_duration).toBeGreaterThan(1e6 / 100);
  });

  test('streams lines unless told otherwise; the last is done', async () => {
    const response = await fetch(`${server.url}/api/chat`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      // The client has left its own default in the request.
      body: JSON.stringify({ ...base, stream: undefined }),
    });
    expect(response.headers.get('content-type')).toBe('application/x-ndjson');
    const lines = (await response.text()).split('\n');
    expect(lines.pop()).toBe('');
    const events = lines.map((line) => JSON.parse(line));
    expect(events.length).toBeGreaterThan(3);
    expect(events.map(({ message }) => message.content).join('')).toBe(greeting);
    expect(events.filter(({ done }) => done)).toHaveLength(1);
    expect(events.at(-1)).toMatchObject({ done: true, done_reason: 'stop', message: { content: '' } });
    expect(events[0]).not.toHaveProperty('eval_count');
  });

  test('is cut by num_predict, by a stop text, by the context', async () => {
    const cut = await client.chat({ ...base, options: { temperature: 0, num_predict: 2 } });
    expect([cut.done_reason, cut.eval_count]).toEqual(['length', 2]);
    const stopped = await client.chat({ ...base, options: { temperature: 0, stop: ['lo th'] } });
    expect([stopped.message.content, stopped.done_reason]).toEqual(['Hel', 'stop']);
    const endless = [{ role: 'user', content: 'Go on' }];
    const most = await client.chat({ ...base, messages: endless, options: { temperature: 0, num_predict: 100_000 } });
    expect(most.done_reason).toBe('length');
    expect(most.prompt_eval_count + most.eval_count).toBe(contextTokens);
  });

  test('calls a tool, in a stream too, and reads its result by the name of the tool', async () => {
    const first = await client.chat({ ...base, messages: question, tools });
    const call = { function: { name: 'get_weather', arguments: { city: 'Beijing' } } };
    expect(first.message).toEqual({ role: 'assistant', content: 'Let me look.', tool_calls: [call] });
    const streamed = [];
    for await (const line of await client.chat({ ...base, messages: question, tools, stream: true })) {
      streamed.push(...(line.message.tool_calls ?? []));
    }
    expect(streamed).toEqual([call]);
    const result = { role: 'tool', tool_name: 'get_weather', content: 'Sunny' };
    const second = await client.chat({ ...base, messages: [...question, first.message, result], tools });
    expect(second.message.content).toBe('It is sunny.');
  });

  test('without messages says that the model is loaded', async () => {
    expect(await client.chat({ model: modelId, keep_alive: -1 })).toMatchObject({ done: true, done_reason: 'load' });
  });
});

describe('POST /api/generate', () => {
  test('answers a prompt, at once and in a stream', async () => {
    const body = { model: modelId, prompt: 'Say hello', system: 'Be brief.', options: { temperature: 0 } };
    const answer = await client.generate(body);
    expect(answer).toMatchObject({ response: greeting, done: true, done_reason: 'stop' });
    let text = '';
    for await (const line of await client.generate({ ...body, stream: true })) text += line.response;
    expect(text).toBe(greeting);
  });

  test('goes on with a raw prompt as it is, control tokens included', async () => {
    const raw = '<|im_user|>user<|im_middle|>Say hello<|im_end|><|im_assistant|>assistant<|im_middle|>';
    const ids = tokenizer.encode(raw, { specials: true });
    const body = { model: modelId, prompt: raw, raw: true, options: { temperature: 0 } };
    const answer = await client.generate(body);
    expect(answer).toMatchObject({ response: greeting, done: true, prompt_eval_count: ids.length });
    expect(answer.eval_duration).toBeGreaterThan(0);
    let text = '';
    for await (const line of await client.generate({ ...body, stream: true })) text += line.response;
    expect(text).toBe(greeting);
  });

  test('without a prompt says that the model is loaded', async () => {
    const answer = await client.generate({ model: modelId, prompt: '', keep_alive: 0 });
    expect(answer).toMatchObject({ response: '', done: true, done_reason: 'load' });
  });
});

describe('about the model', () => {
  test('tags and ps list it under a name that requests may use', async () => {
    const { models } = await client.list();
    expect(models).toHaveLength(1);
    const { name, size, digest, details } = models[0]!;
    expect(name).toBe(`${modelId}:latest`);
    expect(size).toBeGreaterThan(10e6);
    expect(digest).toMatch(/^[0-9a-f]{64}$/);
    expect(details).toMatchObject({ format: 'gguf', family: 'deepseek2', parameter_size: '30.0M' });
    expect(details.quantization_level).toBe('Q8_0');
    expect((await client.ps()).models[0]).toMatchObject({ name, digest, context_length: contextTokens });
    expect((await client.chat({ ...base, model: name })).message.content).toBe(greeting);
  });

  test('show says what it can do and how long its context is', async () => {
    const shown = await client.show({ model: modelId });
    expect(shown.capabilities).toEqual(expect.arrayContaining(['completion', 'tools']));
    expect(shown.model_info).toMatchObject({
      'general.architecture': 'deepseek2',
      'deepseek2.context_length': contextTokens,
      'deepseek2.block_count': 8,
    });
    expect((await postJson(`${server.url}/api/show`, { name: modelId })).status).toBe(200);
  });

  test('version is one that clients can compare, after they have seen that the server runs', async () => {
    expect((await client.version()).version).toMatch(/^\d+\.\d+\.\d+$/);
    expect((await fetch(server.url, { method: 'HEAD' })).status).toBe(200);
  });
});

describe('errors', () => {
  test.each<[string, string, object, RegExp]>([
    [
      'images of a message',
      'chat',
      { messages: [{ role: 'user', content: '', images: ['x'] }] },
      /'messages.0.images'/,
    ],
    ['images of a prompt', 'generate', { prompt: 'x', images: ['x'] }, /'images'/],
    ['suffix', 'generate', { prompt: 'x', suffix: 'y' }, /'suffix'/],
    ['context', 'generate', { prompt: 'x', context: [1, 2] }, /'context'/],
    ['template', 'generate', { prompt: 'x', template: '{{ .Prompt }}' }, /'template'/],
    ['logprobs', 'chat', { messages, logprobs: true }, /'logprobs'/],
    ['mirostat', 'chat', { messages, options: { mirostat: 2 } }, /'options.mirostat'/],
    ['a temperature of text', 'chat', { messages, options: { temperature: 'hot' } }, /'options.temperature' must be/],
    ['an unknown format', 'chat', { messages, format: 'xml' }, /'format' must be "json" or a JSON schema/],
    ['a role of its own', 'chat', { messages: [{ role: 'bot', content: 'x' }] }, /'messages.0.role' must be/],
  ])('%s: 400 that names the field', async (_name, route, more, message) => {
    const { status, body } = await postJson(`${server.url}/api/${route}`, { model: modelId, ...more });
    expect(status).toBe(400);
    expect(Object.keys(body)).toEqual(['error']);
    expect(body.error).toMatch(message);
  });

  test('an unknown model and an unknown route: 404', async () => {
    await expect(client.chat({ ...base, model: 'other' })).rejects.toMatchObject({
      status_code: 404,
      name: 'ResponseError',
    });
    await expect(client.pull({ model: 'other' })).rejects.toMatchObject({ status_code: 404 });
    expect(await ask(`${server.url}/api/chat`)).toMatchObject({ status: 405 });
  });

  test('a prompt that does not fit has a status, in streams too', async () => {
    const long = [{ role: 'user', content: 'word '.repeat(5000) }];
    for (const stream of [false, true]) {
      const { status, body } = await postJson(`${server.url}/api/chat`, { ...base, messages: long, stream });
      expect([status, body.error]).toEqual([400, expect.stringMatching(/^The prompt has/)]);
    }
  });

  test('a stream that fails ends in a line of the error', async () => {
    let steps = 0;
    const failing = await startLocal({
      beforeStep: () => {
        if (++steps > 3) throw new Error('out of order');
      },
    });
    const stream = await new Ollama({ host: failing.url }).chat({ ...base, stream: true });
    const all = async () => {
      for await (const _line of stream);
    };
    await expect(all()).rejects.toThrow(/The engine failed/);
    await failing.close();
  });

  test('a client that leaves ends its generation', async () => {
    const endless = { ...base, messages: [{ role: 'user', content: 'Go on' }], stream: true as const };
    const stream = await client.chat(endless);
    for await (const _line of stream) break;
    stream.abort();
    await expect.poll(() => server.server.inFlight.size).toBe(0);
  });
});
