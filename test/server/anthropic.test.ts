/** The messages route as Anthropic's own client sees it, and as the bytes say. */
import Anthropic from '@anthropic-ai/sdk';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ask, contextTokens, type Harness, modelId, postJson, reply, startLocal, tokenizer } from './harness.ts';

const greeting = 'Hello there, friend! 你好 🙂';
const call = (name: string, index: number, args: string) =>
  `<|tool_call_begin|>functions.${name}:${index}<|tool_call_argument_begin|>${args}<|tool_call_end|>`;
const section = (...calls: string[]) =>
  `<|tool_calls_section_begin|>${calls.join('')}<|tool_calls_section_end|><|im_end|>`;

let server: Harness;
let client: Anthropic;
beforeAll(async () => {
  server = await startLocal({
    replies: [
      reply('## Return of functions.get_weather:1\nError: no such city', 'Only Oslo is known.<|im_end|>'),
      reply('## Return of functions.get_weather:0\nSunny', 'It is sunny.<|im_end|>'),
      reply('How is the weather?', `Let me look.${section(call('get_weather', 0, '{"city": "Beijing"}'))}`),
      reply('Both?', section(call('get_weather', 0, '{"city":"Oslo"}'), call('get_weather', 1, '{"city":"Rome"}'))),
      reply('Go on', ' and on'),
      reply('', `${greeting}<|im_end|>`),
    ],
  });
  client = new Anthropic({ baseURL: server.url, apiKey: 'unused', maxRetries: 0 });
});
afterAll(() => server.close());

const messages: Anthropic.MessageParam[] = [{ role: 'user', content: 'Say hello' }];
const base = { model: modelId, messages, max_tokens: 100, temperature: 0 };
const tools: Anthropic.Tool[] = [
  {
    name: 'get_weather',
    description: 'Weather of a city',
    input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
];

/** The events of a stream as they came, in frames. */
async function rawStream(body: object, path = '/v1/messages') {
  const response = await fetch(`${server.url}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'anthropic-version': '2023-06-01' },
    body: JSON.stringify({ ...base, stream: true, ...body }),
  });
  const frames = (await response.text()).split('\n\n').filter((frame) => frame !== '');
  const events = frames.map((frame) => {
    const [, name, data] = /^event: (\w+)\ndata: (.*)$/.exec(frame)!;
    const event = JSON.parse(data!) as Anthropic.MessageStreamEvent;
    expect(event.type).toBe(name);
    return event;
  });
  return { headers: response.headers, events, names: events.map(({ type }) => type as string) };
}

const textOf = (message: Anthropic.Message) =>
  message.content.map((block) => (block.type === 'text' ? block.text : '')).join('');
const promptOf = async (body: Partial<Anthropic.MessageCountTokensParams>) =>
  (await client.messages.countTokens({ model: modelId, messages, ...body })).input_tokens;

describe('an answer at once', () => {
  test('has text, reason and usage', async () => {
    const { data, request_id } = await client.messages.create(base).withResponse();
    expect(data).toMatchObject({
      id: expect.stringMatching(/^msg_/),
      type: 'message',
      role: 'assistant',
      model: modelId,
      content: [{ type: 'text', text: greeting }],
      stop_reason: 'end_turn',
      stop_sequence: null,
    });
    expect(data.usage.output_tokens).toBeGreaterThan(5);
    expect(request_id).toMatch(/^req-/);
    expect(Object.keys(data)).not.toContain('timings');
  });

  test('what the cache had is counted apart from what was computed', async () => {
    const total = await promptOf({});
    await client.messages.create(base);
    const { usage } = await client.messages.create(base);
    expect(usage).toMatchObject({
      input_tokens: 1,
      cache_read_input_tokens: total - 1,
      cache_creation_input_tokens: 0,
    });
  });

  test('cut by max_tokens, by a stop sequence, by the context', async () => {
    const cut = await client.messages.create({ ...base, max_tokens: 2 });
    expect([cut.stop_reason, cut.usage.output_tokens]).toEqual(['max_tokens', 2]);
    const stopped = await client.messages.create({ ...base, stop_sequences: ['never', 'lo th'] });
    expect([textOf(stopped), stopped.stop_reason, stopped.stop_sequence]).toEqual(['Hel', 'stop_sequence', 'lo th']);
    const endless = { ...base, messages: [{ role: 'user' as const, content: 'Go on' }], max_tokens: 32_000 };
    const { stop_reason, usage } = await client.messages.create({ ...endless, stream: true }).then(async (stream) => {
      let end: Anthropic.RawMessageDeltaEvent | undefined;
      for await (const event of stream) if (event.type === 'message_delta') end = event;
      return { ...end!.delta, usage: end!.usage };
    });
    expect(stop_reason).toBe('model_context_window_exceeded');
    expect(usage.output_tokens).toBeLessThan(contextTokens);
  });

  test('under /anthropic as well, with either header for the key', async () => {
    const moonshot = new Anthropic({ baseURL: `${server.url}/anthropic`, authToken: 'unused', apiKey: null });
    expect(textOf(await moonshot.messages.create(base))).toBe(greeting);
    expect(textOf((await moonshot.beta.messages.create({ ...base, betas: ['context-1m'] })) as Anthropic.Message)).toBe(
      greeting,
    );
  });

  test('goes on with an answer that the client began', async () => {
    const begun = { role: 'assistant' as const, content: 'Hello there,' };
    const more = await promptOf({ messages: [...messages, begun] });
    expect(more - (await promptOf({}))).toBe(tokenizer.encode(begun.content).length);
    const rest = await client.messages.create({ ...base, messages: [...messages, begun] });
    expect(begun.content + textOf(rest)).toBe(greeting);
  });
});

describe('a stream', () => {
  test('has the events in their order, each named by its type, and no [DONE]', async () => {
    const { headers, events, names } = await rawStream({});
    expect(headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    expect(headers.get('request-id')).toMatch(/^req-/);
    expect(names.slice(0, 3)).toEqual(['message_start', 'content_block_start', 'ping']);
    expect(names.slice(-3)).toEqual(['content_block_stop', 'message_delta', 'message_stop']);
    expect(new Set(names.slice(3, -3))).toEqual(new Set(['content_block_delta']));
    expect(events[0]).toMatchObject({
      message: { content: [], stop_reason: null, stop_sequence: null, usage: { output_tokens: 0 } },
    });
    const { usage } = (events[0] as Anthropic.MessageStartEvent).message;
    expect(usage.input_tokens).toBeGreaterThan(0);
    expect(events.at(-2)).toMatchObject({ delta: { stop_reason: 'end_turn', stop_sequence: null } });
  });

  test('adds up to the answer at once', async () => {
    const stream = client.messages.stream(base);
    const texts: string[] = [];
    stream.on('text', (text) => texts.push(text));
    const message = await stream.finalMessage();
    expect(texts.join('')).toBe(greeting);
    expect(texts.length).toBeGreaterThan(3);
    const { content, stop_reason, model } = await client.messages.create(base);
    expect(message).toMatchObject({ content, stop_reason, model });
  });

  test('that fails ends in an event of the error', async () => {
    let steps = 0;
    const failing = await startLocal({
      beforeStep: () => {
        if (++steps > 3) throw new Error('out of order');
      },
    });
    const stream = new Anthropic({ baseURL: failing.url, apiKey: 'unused', maxRetries: 0 }).messages.stream(base);
    await expect(stream.finalMessage()).rejects.toMatchObject({ type: 'api_error', message: /The engine failed/ });
    await failing.close();
  });

  test('a request that cannot work gets a status, not a stream', async () => {
    const other = client.messages.create({ ...base, model: 'other', stream: true });
    await expect(other).rejects.toMatchObject({ status: 404, type: 'not_found_error' });
    const long = [{ role: 'user' as const, content: 'word '.repeat(5000) }];
    const tooLong = client.messages.create({ ...base, messages: long, stream: true });
    await expect(tooLong).rejects.toMatchObject({ status: 400, type: 'invalid_request_error' });
  });
});

describe('tools', () => {
  const question: Anthropic.MessageParam = { role: 'user', content: 'How is the weather?' };

  test('a call, its result, and the answer', async () => {
    const first = await client.messages.create({ ...base, messages: [question], tools });
    expect(first.stop_reason).toBe('tool_use');
    expect(first.content).toEqual([
      { type: 'text', text: 'Let me look.' },
      { type: 'tool_use', id: expect.stringMatching(/^toolu_/), name: 'get_weather', input: { city: 'Beijing' } },
    ]);
    const { id } = first.content[1] as Anthropic.ToolUseBlock;
    const result = {
      type: 'tool_result' as const,
      tool_use_id: id,
      content: [{ type: 'text' as const, text: 'Sunny' }],
    };
    const history = [question, { role: 'assistant' as const, content: first.content }];
    const second = await client.messages.create({
      ...base,
      messages: [...history, { role: 'user', content: [result] }],
      tools,
    });
    expect([textOf(second), second.stop_reason]).toEqual(['It is sunny.', 'end_turn']);
  });

  test('parallel calls and their results, one of them an error', async () => {
    const both: Anthropic.MessageParam = { role: 'user', content: 'Both?' };
    const { content } = await client.messages.create({ ...base, messages: [both], tools });
    const uses = content.flatMap((block) => (block.type === 'tool_use' ? [block] : []));
    expect(uses.map(({ input }) => input)).toEqual([{ city: 'Oslo' }, { city: 'Rome' }]);
    const results: Anthropic.ToolResultBlockParam[] = [
      { type: 'tool_result', tool_use_id: uses[1]!.id, content: 'no such city', is_error: true },
      { type: 'tool_result', tool_use_id: uses[0]!.id, content: 'Rainy' },
    ];
    const answer = await client.messages.create({
      ...base,
      messages: [both, { role: 'assistant', content }, { role: 'user', content: results }],
      tools,
    });
    expect(textOf(answer)).toBe('Only Oslo is known.');
  });

  test('a stream has one block a call, with its input in pieces', async () => {
    const { events, names } = await rawStream({ messages: [question], tools });
    const starts = events.flatMap((event) => (event.type === 'content_block_start' ? [event] : []));
    expect(starts.map(({ index, content_block }) => [index, content_block.type])).toEqual([
      [0, 'text'],
      [1, 'tool_use'],
    ]);
    expect(starts[1]!.content_block).toMatchObject({ input: {}, name: 'get_weather' });
    expect(names.indexOf('content_block_stop')).toBeLessThan(names.lastIndexOf('content_block_start'));
    const json = events.flatMap((event) =>
      event.type === 'content_block_delta' && event.delta.type === 'input_json_delta' ? [event.delta.partial_json] : [],
    );
    expect(JSON.parse(json.join(''))).toEqual({ city: 'Beijing' });
    expect(events.at(-2)).toMatchObject({ delta: { stop_reason: 'tool_use' } });
    const message = await client.messages.stream({ ...base, messages: [question], tools }).finalMessage();
    expect(message.content[1]).toMatchObject({ input: { city: 'Beijing' } });
  });

  test('disable_parallel_tool_use ends the answer with its first call', async () => {
    const choice = { type: 'auto' as const, disable_parallel_tool_use: true };
    const both = [{ role: 'user' as const, content: 'Both?' }];
    const { content } = await client.messages.create({ ...base, messages: both, tools, tool_choice: choice });
    expect(content).toHaveLength(1);
  });
});

describe('counting tokens', () => {
  test('is what the answer then counts, with system and tools, and needs no max_tokens', async () => {
    const body = { system: [{ type: 'text' as const, text: 'Be brief.' }], tools, messages };
    const total = await promptOf(body);
    expect(total).toBeGreaterThan(await promptOf({ system: 'Be brief.' }));
    const { usage } = await client.messages.create({ ...base, ...body });
    expect(usage.input_tokens + (usage.cache_read_input_tokens ?? 0)).toBe(total);
  });

  test("Claude Code's billing block, which changes with every request, is no part of the prompt", async () => {
    const billing = { type: 'text' as const, text: 'x-anthropic-billing-header: cch=12ab;' };
    const system = { type: 'text' as const, text: 'Be brief.', cache_control: { type: 'ephemeral' as const } };
    expect(await promptOf({ system: [billing, system] })).toBe(await promptOf({ system: 'Be brief.' }));
  });
});

describe('errors', () => {
  test.each<[string, object, RegExp]>([
    ['max_tokens missing', { max_tokens: undefined }, /'max_tokens' must be/],
    ['no messages', { messages: [] }, /'messages' must be/],
    ['temperature above 1', { temperature: 1.5 }, /'temperature' must be a number from 0 to 1/],
    ['any without tools', { tool_choice: { type: 'any' } }, /'tool_choice.type' must be/],
    ['an unknown tool', { tools, tool_choice: { type: 'tool', name: 'x' } }, /'tool_choice.name' must be/],
    ['a tool without schema', { tools: [{ name: 'x' }] }, /'tools.0.input_schema' must be/],
    [
      'a server tool',
      { tools: [{ type: 'web_search_20250305', name: 'web_search' }] },
      /'tools.0.type' is "web_search/,
    ],
    ['mcp_servers', { mcp_servers: [{ url: 'x' }] }, /'mcp_servers' is/],
    [
      'a result of the assistant',
      { messages: [{ role: 'assistant', content: [{ type: 'tool_result', tool_use_id: 'x' }] }] },
      /'messages.0.content.0.type' must be one of "text"/,
    ],
    ...['image', 'document', 'search_result'].map((type): [string, object, RegExp] => [
      type,
      { messages: [{ role: 'user', content: [{ type, source: { type: 'base64', data: '' } }] }] },
      new RegExp(`'messages.0.content.0.type' is "${type}", which this server does not support`),
    ]),
  ])('%s: 400 that names the field', async (_name, more, message) => {
    const { status, body } = await postJson(`${server.url}/v1/messages`, { ...base, ...more });
    expect(status).toBe(400);
    expect(body).toMatchObject({ type: 'error', error: { type: 'invalid_request_error' } });
    expect(body.error.message).toMatch(message);
    expect(body.request_id).toMatch(/^req-/);
  });

  test('batches are refused by name; other routes and methods do not exist', async () => {
    const batches = client.messages.batches.create({ requests: [{ custom_id: '1', params: base }] });
    await expect(batches).rejects.toMatchObject({ status: 400, message: /'batches'/ });
    expect(await ask(`${server.url}/v1/messages`)).toMatchObject({ status: 405, body: { type: 'error' } });
    expect((await postJson(`${server.url}/anthropic/v1/complete`, {})).body.error.type).toBe('not_found_error');
  });

  test('a body that is no JSON, and one that is too large', async () => {
    const send = (body: string) =>
      ask(`${server.url}/v1/messages`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    expect(await send('{')).toMatchObject({ status: 400, body: { error: { type: 'invalid_request_error' } } });
    const large = await send(`{"x":"${'x'.repeat(33 * 2 ** 20)}"}`).catch(() => null);
    if (large !== null) expect(large).toMatchObject({ status: 413, body: { error: { type: 'request_too_large' } } });
  });

  test('a server that ends is overloaded, in their words', async () => {
    const ending = await startLocal();
    await ending.server.inFlight.drain(0);
    const late = new Anthropic({ baseURL: ending.url, apiKey: 'unused', maxRetries: 0 }).messages.create(base);
    await expect(late).rejects.toMatchObject({ status: 529, type: 'overloaded_error' });
    await ending.close();
  });

  test('a wrong key', async () => {
    const guarded = await startLocal({ apiKey: 'secret' });
    const wrong = new Anthropic({ baseURL: guarded.url, apiKey: 'guess', maxRetries: 0 });
    await expect(wrong.messages.create(base)).rejects.toMatchObject({ status: 401, type: 'authentication_error' });
    const right = new Anthropic({ baseURL: guarded.url, apiKey: 'secret', maxRetries: 0 });
    expect(await right.messages.create(base)).toMatchObject({ stop_reason: 'end_turn' });
    const bearer = new Anthropic({ baseURL: guarded.url, authToken: 'secret', apiKey: null, maxRetries: 0 });
    expect(await bearer.messages.create(base)).toMatchObject({ stop_reason: 'end_turn' });
    await guarded.close();
  });
});
