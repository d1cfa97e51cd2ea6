/** response_format and tool_choice with the official client, against `perigee serve` and Nano, which left alone writes prose. */
import { Ajv } from 'ajv';
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ServeCommand, startServe } from './serve-command.ts';

let server: ServeCommand;
let client: OpenAI;

beforeAll(async () => {
  server = await startServe();
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none', maxRetries: 0 });
});
afterAll(() => {
  server.process.kill('SIGTERM');
});

const base = {
  model: 'nano',
  messages: [{ role: 'user' as const, content: 'Tell me about an otter.' }],
  temperature: 1,
  seed: 3,
  max_tokens: 400,
};
const schema = {
  type: 'object',
  properties: {
    name: { type: 'string', maxLength: 12 },
    kind: { enum: ['otter', 'tiger'] },
    legs: { type: 'integer', minimum: 0, maximum: 9 },
  },
  required: ['name', 'kind', 'legs'],
  additionalProperties: false,
};
const format = (of: object) => ({ type: 'json_schema' as const, json_schema: { name: 'animal', schema: of as never } });
const valid = new Ajv().compile(schema);

const tool = (name: string) => ({ type: 'function' as const, function: { name, parameters: schema } });
const tools = [tool('note_animal'), tool('find_animal')];

describe('a text', () => {
  test('follows a schema, at once and in a stream, for each of n', async () => {
    const { choices } = await client.chat.completions.create({ ...base, n: 3, response_format: format(schema) });
    for (const { message, finish_reason } of choices) {
      expect(finish_reason).toBe('stop');
      expect(valid(JSON.parse(message.content!))).toBe(true);
    }
    let text = '';
    const stream = await client.chat.completions.create({ ...base, stream: true, response_format: format(schema) });
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? '';
    expect(text).toBe(choices[0]!.message.content);
  });

  test('is a JSON object under json_object, unless it is cut', async () => {
    const wanted = { ...base, response_format: { type: 'json_object' as const }, temperature: 0.5 };
    const { choices } = await client.chat.completions.create(wanted);
    const { message, finish_reason } = choices[0]!;
    if (finish_reason === 'stop') expect(typeof JSON.parse(message.content!)).toBe('object');
    else expect(message.content).toMatch(/^\s*\{/);
  });

  test('of the completions route follows a schema as well', async () => {
    const { choices } = await client.completions.create({
      model: 'nano',
      prompt: 'An otter as JSON: ',
      max_tokens: 200,
      // @ts-expect-error: vLLM's
      response_format: format(schema),
    });
    expect(choices[0]!.finish_reason).toBe('stop');
    expect(valid(JSON.parse(choices[0]!.text))).toBe(true);
  });
});

describe('tool_choice', () => {
  const calls = async (more: Partial<OpenAI.ChatCompletionCreateParamsNonStreaming>) => {
    const { choices } = await client.chat.completions.create({ ...base, tools, ...more, stream: false });
    const { message, finish_reason } = choices[0]!;
    return {
      message,
      finish_reason,
      made: (message.tool_calls ?? []).flatMap((one) => ('function' in one ? one : [])),
    };
  };

  test('required: calls of declared tools with valid arguments', async () => {
    const { made, finish_reason } = await calls({ tool_choice: 'required', parallel_tool_calls: false });
    expect(finish_reason).toBe('tool_calls');
    expect(made).toHaveLength(1);
    expect(made[0]!.id).toMatch(/^functions\.(note|find)_animal:0$/);
    expect(valid(JSON.parse(made[0]!.function.arguments))).toBe(true);
  });

  test('named: a call of this one', async () => {
    const choice = { type: 'function' as const, function: { name: 'find_animal' } };
    const { made, finish_reason } = await calls({ tool_choice: choice, parallel_tool_calls: false });
    expect(finish_reason).toBe('tool_calls');
    expect(made.map((one) => one.function.name)).toEqual(['find_animal']);
    expect(valid(JSON.parse(made[0]!.function.arguments))).toBe(true);
  });

  test('none: no call', async () => {
    const { made, message } = await calls({ tool_choice: 'none', max_tokens: 30 });
    expect(made).toEqual([]);
    expect(message.content).not.toBe('');
  });

  test('schemas with numbers that Python prints with a point are enforced like others', async () => {
    const parameters = { type: 'object', properties: { x: { type: 'number' } }, required: ['x'] };
    const body = JSON.stringify({
      ...base,
      tools: [{ type: 'function', function: { name: 'f', parameters } }],
      tool_choice: 'required',
      parallel_tool_calls: false,
      max_tokens: 60,
    }).replace('"number"', '"integer","minimum":1.0,"maximum":3.0');
    const response = await fetch(`${client.baseURL}/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
    });
    expect(response.status).toBe(200);
    const { choices } = (await response.json()) as OpenAI.ChatCompletion;
    const [made] = choices[0]!.message.tool_calls!;
    const { x } = JSON.parse((made as { function: { arguments: string } }).function.arguments);
    expect([1, 2, 3]).toContain(x);
  });
});

describe('keywords that no grammar is made of', () => {
  const odd = { type: 'object', properties: { name: { type: 'string', not: { const: 'x' } } }, propertyNames: {} };
  const strictly = (strict: boolean) => ({
    tools: [
      tool('find_animal'),
      { type: 'function' as const, function: { name: 'note_oddity', strict, parameters: odd } },
    ],
    max_tokens: 5,
  });
  const refused = (param: string) => ({ status: 400, code: 'schema_unsupported', param });

  test('of a tool are left out, and named in one line of the log without the prompt', async () => {
    const before = server.log().length;
    const message = { role: 'user' as const, content: 'A secret otter.' };
    await client.chat.completions.create({ ...base, ...strictly(false), n: 2, messages: [message] });
    const lines = server.log().slice(before).split('\n');
    const told = lines.filter((line) => line.includes('unenforced'));
    expect(told).toHaveLength(1);
    expect(JSON.parse(told[0]!)).toMatchObject({
      reqId: expect.any(String),
      unenforced: [{ tool: 'note_oddity', keywords: ['propertyNames', 'not'] }],
    });
    expect(told[0]).not.toContain('secret');
  });

  test('are refused by name and field where the whole schema is promised', async () => {
    const field = 'tools.1.function.parameters';
    const { create } = client.chat.completions;
    const ask = (more: object) => create.call(client.chat.completions, { ...base, ...more } as never);
    await expect(ask(strictly(true))).rejects.toMatchObject(refused(field));
    await expect(ask({ ...strictly(true), stream: true })).rejects.toMatchObject(refused(field));
    await expect(ask({ ...strictly(false), tool_choice: 'required' })).rejects.toMatchObject(refused(field));
    const named = { type: 'function', function: { name: 'note_oddity' } };
    await expect(ask({ ...strictly(false), tool_choice: named })).rejects.toMatchObject(refused(field));
    const format = { type: 'json_schema', json_schema: { name: 'odd', strict: true, schema: odd } };
    await expect(ask({ response_format: format })).rejects.toMatchObject(refused('response_format.json_schema.schema'));
  });

  test('of a schema that is not strict are left out', async () => {
    const { choices } = await client.chat.completions.create({ ...base, response_format: format(odd) });
    if (choices[0]!.finish_reason === 'stop') expect(typeof JSON.parse(choices[0]!.message.content!)).toBe('object');
    else expect(choices[0]!.message.content).toMatch(/^\s*\{/);
  });
});

describe('min_tokens', () => {
  test('does not ask more of JSON than there can be', async () => {
    const wanted = { ...base, response_format: format({ enum: [true] }), min_tokens: 50 };
    const { choices } = await client.chat.completions.create(wanted);
    expect(choices[0]!.message.content).toBe('true');
    expect(choices[0]!.finish_reason).toBe('stop');
  });
});

describe('schemas that cannot be enforced are refused, in streams too', () => {
  test.each<[string, object]>([
    ['no type', { type: 'hiccup' }],
    ['a broken pattern', { type: 'string', pattern: '(' }],
    ['a recursion without end', { $ref: '#' }],
  ])('%s: 400', async (_name, of) => {
    for (const stream of [false, true]) {
      const answer = client.chat.completions.create({ ...base, stream, response_format: format(of) });
      await expect(answer).rejects.toMatchObject({ status: 400, type: 'invalid_request_error' });
    }
    const declared = { type: 'function' as const, function: { name: 'f', parameters: of as never } };
    await expect(client.chat.completions.create({ ...base, tools: [declared] })).rejects.toMatchObject({ status: 400 });
  });
});
