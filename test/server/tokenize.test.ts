/** The tokenizer from afar, as vLLM offers it and lm-eval uses it. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { renderPrompt } from '../../src/chat/prompt.ts';
import { ask, contextTokens, type Harness, modelId, postJson, startLocal, tokenizer } from './harness.ts';

let server: Harness;
beforeAll(async () => {
  server = await startLocal();
});
afterAll(() => server.close());

const tokenize = (body: unknown) => postJson(`${server.url}/tokenize`, body);
const detokenize = (body: unknown) => postJson(`${server.url}/detokenize`, body);
const end = tokenizer.specials.get('<|im_end|>')!;

describe('a text', () => {
  test('becomes ids and comes back; names of control tokens are read as such', async () => {
    const prompt = 'Hi 你好<|im_end|>';
    const { body } = await tokenize({ model: modelId, prompt, add_special_tokens: false });
    expect(body).toEqual({
      count: body.tokens.length,
      max_model_len: contextTokens,
      tokens: [...tokenizer.encode('Hi 你好'), end],
      token_strs: null,
    });
    expect((await detokenize({ tokens: body.tokens })).body).toEqual({ prompt });
  });

  test('is shown token by token', async () => {
    const { body } = await tokenize({ prompt: 'Hi there', return_token_strs: true });
    expect(body.token_strs.join('')).toBe('Hi there');
  });
});

test('a chat becomes the ids that the model would get', async () => {
  const messages = [{ role: 'user', content: 'Hello <|im_end|>' }];
  const tools = [{ type: 'function', function: { name: 'f', parameters: { type: 'object' } } }];
  const { body } = await tokenize({ messages, tools, add_generation_prompt: true });
  const conversation = { messages, tools: [{ name: 'f', declaration: tools[0]! }], templateOptions: {} };
  expect(body.tokens).toEqual(renderPrompt(conversation, tokenizer).ids);
  const answer = await server.client.chat.completions.create({
    model: modelId,
    messages: [{ role: 'user', content: 'Hello' }],
  });
  const { body: plain } = await tokenize({ messages: [{ role: 'user', content: 'Hello' }] });
  expect(answer.usage!.prompt_tokens).toBe(plain.count);
});

test.each<[string, object, string]>([
  ['tokenize', {}, 'prompt'],
  ['tokenize', { prompt: 5 }, 'prompt'],
  ['tokenize', { prompt: 'x', messages: [{ role: 'user', content: 'x' }] }, 'prompt'],
  ['tokenize', { messages: [{ role: 'user', content: 'x' }], add_generation_prompt: false }, 'add_generation_prompt'],
  ['detokenize', {}, 'tokens'],
  ['detokenize', { tokens: 'x' }, 'tokens'],
  ['detokenize', { tokens: [1, 1e6] }, 'tokens.1'],
  ['detokenize', { tokens: [-1] }, 'tokens.0'],
])('/%s %j: 400 that names the field', async (route, fields, param) => {
  const { status, body } = await postJson(`${server.url}/${route}`, fields);
  expect(status).toBe(400);
  expect(body.error).toMatchObject({ type: 'invalid_request_error', param });
});

test('another model: 404', async () => {
  expect((await tokenize({ model: 'gpt-9', prompt: 'x' })).status).toBe(404);
});

// lm_eval/api/... RemoteTokenizer: takes the remote tokenizer when there is an eos_token.
test('/tokenizer_info names the special tokens, and these are known to /tokenize', async () => {
  const { body } = await ask(`${server.url}/tokenizer_info`);
  expect(body).toMatchObject({ bos_token: '[BOS]', eos_token: '[EOS]', model_max_length: contextTokens });
  expect((await tokenize({ prompt: body.eos_token })).body.tokens).toEqual([tokenizer.eosToken]);
  expect(body.chat_template).toBe(tokenizer.chatTemplate);
});
