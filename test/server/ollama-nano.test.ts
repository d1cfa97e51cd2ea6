/** Ollama's own client against `perigee serve` as people run it, with Nano. */
import { Ajv } from 'ajv';
import { Ollama } from 'ollama';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ServeCommand, startServe } from './serve-command.ts';

let server: ServeCommand;
let client: Ollama;

beforeAll(async () => {
  server = await startServe();
  client = new Ollama({ host: server.url });
});
afterAll(() => {
  server.process.kill('SIGTERM');
});

const options = { temperature: 0, num_predict: 200 };

test('the model that is listed answers, and calls tools', async () => {
  const model = (await client.list()).models[0]!.name;
  expect(model).toBe('nano:latest');
  const { response } = await client.generate({ model, prompt: 'What is the capital of France?', options });
  expect(response).toMatch(/Paris/);
  const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
  const description = 'Retrieve current weather information. Call this when the user asks about the weather.';
  const { message } = await client.chat({
    model,
    messages: [{ role: 'user', content: "What's the weather like in Beijing today?" }],
    tools: [{ type: 'function', function: { name: 'get_weather', description, parameters } }],
    options,
  });
  expect(message.tool_calls).toEqual([{ function: { name: 'get_weather', arguments: { city: 'Beijing' } } }]);
});

test('a format is kept: JSON, or JSON of a schema, in chats and in raw prompts', async () => {
  const schema = {
    type: 'object',
    properties: { name: { type: 'string', maxLength: 12 }, legs: { type: 'integer', minimum: 0, maximum: 9 } },
    required: ['name', 'legs'],
    additionalProperties: false,
  };
  const valid = new Ajv().compile(schema);
  const messages = [{ role: 'user', content: 'Tell me about an otter.' }];
  const warm = { temperature: 1, seed: 3, num_predict: 200 };
  const { message } = await client.chat({ model: 'nano', messages, format: schema, options: warm });
  expect(valid(JSON.parse(message.content))).toBe(true);
  const raw = { model: 'nano', prompt: 'An otter as JSON: ', raw: true, options: warm };
  const { response } = await client.generate({ ...raw, format: schema });
  expect(valid(JSON.parse(response ?? ''))).toBe(true);
  const any = await client.chat({ model: 'nano', messages, format: 'json', options: warm });
  if (any.done_reason === 'stop') expect(typeof JSON.parse(any.message.content)).toBe('object');
  else expect(any.message.content).toMatch(/^\s*\{/);
});
