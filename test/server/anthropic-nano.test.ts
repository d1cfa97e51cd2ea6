/** Anthropic's own client against `perigee serve` as people run it, with Nano: tools that are held to their schemas. */
import Anthropic from '@anthropic-ai/sdk';
import { Ajv } from 'ajv';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ServeCommand, startServe } from './serve-command.ts';

let server: ServeCommand;
let client: Anthropic;

beforeAll(async () => {
  server = await startServe();
  client = new Anthropic({ baseURL: server.url, apiKey: 'none', maxRetries: 0 });
});
afterAll(() => {
  server.process.kill('SIGTERM');
});

const weather: Anthropic.Tool = {
  name: 'get_weather',
  description: 'Retrieve current weather information. Call this when the user asks about the weather.',
  input_schema: {
    type: 'object',
    properties: { city: { type: 'string', description: 'Name of the city', maxLength: 20 } },
    required: ['city'],
    additionalProperties: false,
  },
};
const valid = new Ajv().compile(weather.input_schema);
const base = { model: 'nano', max_tokens: 200, temperature: 0 };
const user = (content: Anthropic.MessageParam['content']): Anthropic.MessageParam => ({ role: 'user', content });

describe('Nano', () => {
  test('says a capital, at once and in a stream', async () => {
    const body = { ...base, messages: [user('What is the capital of France?')] };
    const message = await client.messages.create(body);
    expect(message.stop_reason).toBe('end_turn');
    expect(message.content).toMatchObject([{ type: 'text', text: expect.stringContaining('Paris') }]);
    const streamed = await client.messages.stream(body).finalMessage();
    expect(streamed.content).toMatchObject(message.content);
  });

  test('calls a tool and reads its result', async () => {
    const question = user("What's the weather like in Beijing today?");
    const first = await client.messages.create({ ...base, messages: [question], tools: [weather] });
    expect(first.stop_reason).toBe('tool_use');
    const use = first.content.find((block) => block.type === 'tool_use')!;
    expect(use).toMatchObject({ name: 'get_weather', input: { city: 'Beijing' } });
    const result = { type: 'tool_result' as const, tool_use_id: use.id, content: '{"weather": "Sunny"}' };
    const history = [question, { role: 'assistant' as const, content: first.content }, user([result])];
    const second = await client.messages.create({ ...base, messages: history, tools: [weather] });
    expect(second.stop_reason).toBe('end_turn');
    expect(second.content).toMatchObject([{ text: expect.stringMatching(/sunny/i) }]);
    expect(second.usage.cache_read_input_tokens).toBeGreaterThan(0);
  });

  test.each([{ type: 'any' as const }, { type: 'tool' as const, name: 'get_weather' }])(
    'is held to %j, where it would rather tell a story',
    async (choice) => {
      const body = {
        ...base,
        temperature: 1,
        messages: [user('Tell me a short story about an otter.')],
        tools: [weather],
        tool_choice: { ...choice, disable_parallel_tool_use: true },
      };
      const { content, stop_reason } = await client.messages.stream(body).finalMessage();
      expect(stop_reason).toBe('tool_use');
      expect(content).toHaveLength(1);
      expect(valid((content[0] as Anthropic.ToolUseBlock).input)).toBe(true);
    },
  );

  test('none leaves it no call; an output format leaves it JSON', async () => {
    const question = [user("What's the weather like in Beijing today?")];
    const none = {
      ...base,
      max_tokens: 20,
      messages: question,
      tools: [weather],
      tool_choice: { type: 'none' as const },
    };
    expect((await client.messages.create(none)).content).toMatchObject([{ type: 'text' }]);
    const format = { type: 'json_schema' as const, schema: weather.input_schema as unknown as Record<string, unknown> };
    const { content } = await client.messages.create({ ...base, messages: question, output_config: { format } });
    expect(valid(JSON.parse((content[0] as Anthropic.TextBlock).text))).toBe(true);
  });

  test('goes on with an answer that the client began', async () => {
    const messages = [
      user('What is the capital of France?'),
      { role: 'assistant' as const, content: 'The capital of' },
    ];
    const { content } = await client.messages.create({ ...base, messages });
    expect((content[0] as Anthropic.TextBlock).text).toMatch(/^ France is Paris/);
  });

  test('answers what Claude Code sends: betas, caching hints, schemas as its tools have them', async () => {
    const ephemeral = { cache_control: { type: 'ephemeral' } };
    const response = await fetch(`${server.url}/v1/messages?beta=true`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        authorization: 'Bearer none',
        'anthropic-version': '2023-06-01',
        'anthropic-beta': 'interleaved-thinking-2025-05-14,context-management-2025-06-27',
      },
      body: JSON.stringify({
        model: 'nano',
        max_tokens: 32_000,
        stream: true,
        temperature: 1,
        metadata: { user_id: 'user_0_account__session_0' },
        thinking: { type: 'disabled' },
        context_management: { edits: [{ type: 'clear_thinking_20251015', keep: 'all' }] },
        system: [
          { type: 'text', text: 'x-anthropic-billing-header: cc_version=2.1.0; cch=0a1b2;' },
          { type: 'text', text: "You are Claude Code, Anthropic's official CLI for Claude.", ...ephemeral },
        ],
        messages: [
          user([
            { type: 'text', text: '<system-reminder>Be brief.</system-reminder>' },
            { type: 'text', text: 'What is the capital of France?', cache_control: { type: 'ephemeral' } },
          ]),
        ],
        tools: [
          {
            name: 'WebFetch',
            description: 'Fetches a page.',
            input_schema: {
              $schema: 'https://json-schema.org/draft/2020-12/schema',
              type: 'object',
              properties: {
                url: { type: 'string', format: 'uri', description: 'Where it is' },
                limit: { type: 'number', exclusiveMinimum: 0, maximum: 9007199254740991 },
                todos: {
                  type: 'array',
                  items: {
                    type: 'object',
                    properties: { content: { type: 'string', minLength: 1 }, status: { enum: ['pending', 'done'] } },
                    required: ['content', 'status'],
                    additionalProperties: false,
                  },
                },
                metadata: { type: 'object', propertyNames: { type: 'string' }, additionalProperties: {} },
                run: { type: 'boolean', default: false },
              },
              required: ['url'],
              additionalProperties: false,
            },
            ...ephemeral,
          },
        ],
      }),
    });
    const text = await response.text();
    expect(response.status, text).toBe(200);
    expect(text).toMatch(/^event: message_start\n/);
    expect(text).toMatch(/event: message_stop\ndata: .*\n\n$/);
  });

  test('a schema that means nothing is refused, and of a strict tool also one that cannot be kept', async () => {
    const nonsense = { ...weather, input_schema: { type: 'object' as const, properties: { x: { type: 'hiccup' } } } };
    const properties = { x: { type: 'object', propertyNames: { type: 'string', pattern: '^a' } } };
    const unkept = { ...weather, strict: true, input_schema: { type: 'object' as const, properties } };
    for (const tool of [nonsense, unkept]) {
      for (const stream of [false, true]) {
        const refused = client.messages.create({ ...base, stream, messages: [user('Hi')], tools: [tool] });
        await expect(refused).rejects.toMatchObject({ status: 400, type: 'invalid_request_error' });
      }
    }
    const loose = { ...unkept, strict: false };
    expect((await client.messages.create({ ...base, messages: [user('Hi')], tools: [loose] })).type).toBe('message');
  });
});
