/** Requests that are wrong, each with the answer it must get; the server goes on serving after all of them. */
import { connect } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ask, contextTokens, type Harness, modelId, startLocal } from './harness.ts';

let server: Harness;
beforeAll(async () => {
  server = await startLocal();
});
afterAll(() => server.close());

const good = { model: modelId, temperature: 0, messages: [{ role: 'user', content: 'Hello' }] };
const path = '/v1/chat/completions';

const post = (body: string, headers: Record<string, string> = { 'content-type': 'application/json' }) =>
  ask(server.url + path, { method: 'POST', headers, body });
const postJson = (body: unknown) => post(JSON.stringify(body));

/** The shape of every error, whatever it says. */
function expectError(answer: { status: number; body: unknown }, status: number, more: Record<string, unknown> = {}) {
  expect(answer.body).toEqual({
    error: {
      message: expect.stringMatching(/[.!]$/),
      type: expect.any(String),
      param: expect.toBeOneOf([null, expect.any(String)]),
      code: expect.any(String),
      ...more,
    },
  });
  expect(answer.status).toBe(status);
}

describe('bodies', () => {
  test.each([
    ['empty', ''],
    ['blank', '   '],
    ['truncated', '{"messages": [{"role": "user"'],
    ['not JSON', 'hello'],
    ['an array', '[]'],
    ['a string', '"x"'],
    ['null', 'null'],
    ['a number', '17'],
  ])('%s: 400, and the connection can be used again', async (_name, body) => {
    expectError(await post(body), 400, { type: 'invalid_request_error', code: 'body_not_json' });
    expect((await postJson(good)).status).toBe(200);
  });

  test('nested a hundred thousand deep: 400', async () => {
    expectError(await post(`{"messages": ${'['.repeat(1e5)}${']'.repeat(1e5)}}`), 400, { code: 'body_too_deep' });
    expectError(await post('['.repeat(1e5)), 400, { code: 'body_too_deep' });
  });

  test('brackets and escaped quotes in strings are not depth', async () => {
    const content = `${'[{"\\'.repeat(1000)}`;
    expect((await postJson({ ...good, messages: [{ role: 'user', content }] })).status).toBe(200);
  });

  test.each(['{"__proto__": {"polluted": 1}}', '{"messages": [{"constructor": {"prototype": {"polluted": 1}}}]}'])(
    'with a key that reaches a prototype, %s: 400',
    async (body) => {
      expectError(await post(body), 400);
      expect(({} as Record<string, unknown>).polluted).toBeUndefined();
    },
  );

  test.each([undefined, 'text/plain', 'application/x-www-form-urlencoded'])('sent as %s: 415', async (type) => {
    expectError(await post(JSON.stringify(good), type === undefined ? {} : { 'content-type': type }), 415);
  });

  test('larger than 32 MB, with a length or in chunks: 413', async () => {
    const large = JSON.stringify({ ...good, padding: 'x'.repeat(32 * 2 ** 20) });
    expectError(await post(large), 413, { code: 'body_too_large' });
    const chunked = await raw(
      `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n`,
      large.length,
    );
    expect(chunked).toMatch(/^HTTP\/1.1 413 /);
    expect((await postJson(good)).status).toBe(200);
  });

  test('lone surrogates and NUL are text', async () => {
    const content = 'a\ud800b\u0000c';
    expect((await postJson({ ...good, messages: [{ role: 'user', content }] })).status).toBe(200);
  });
});

describe('fields', () => {
  test.each<[string, Record<string, unknown>, string]>([
    ['messages null', { messages: null }, 'messages'],
    ['messages a string', { messages: 'hi' }, 'messages'],
    ['messages numbers', { messages: [123] }, 'messages'],
    ['messages empty objects', { messages: [{}] }, 'messages'],
    ['a role that is a number', { messages: [{ role: 123, content: 'x' }] }, 'messages'],
    ['content that is a number', { messages: [{ role: 'user', content: 123 }] }, 'messages'],
    ['no messages', { messages: [] }, 'messages'],
    ['n huge', { n: 1_000_000 }, 'n'],
    ['n zero', { n: 0 }, 'n'],
    ['n negative', { n: -1 }, 'n'],
    ['n fractional', { n: 1.5 }, 'n'],
    ['max_tokens negative', { max_tokens: -1 }, 'max_tokens'],
    ['max_tokens zero', { max_tokens: 0 }, 'max_tokens'],
    ['max_tokens 2^53', { max_tokens: 2 ** 53 }, 'max_tokens'],
    ['top_k negative', { top_k: -5 }, 'top_k'],
    ['seed huge', { seed: 1e30 }, 'seed'],
    ['temperature a string', { temperature: '0.5' }, 'temperature'],
    ['temperature huge', { temperature: 1e308 }, 'temperature'],
    ['logit_bias beyond the vocabulary', { logit_bias: { '9999999': 1 } }, 'logit_bias'],
    ['stream_options without stream', { stream_options: { include_usage: true } }, 'stream_options'],
  ])('%s: 400 that names the field', async (_name, fields, param) => {
    const answer = await postJson({ ...good, ...fields });
    expectError(answer, 400, { type: 'invalid_request_error', param: expect.stringContaining(param) });
  });

  test('a prompt longer than the context: 400 with both numbers', async () => {
    const content = 'word '.repeat(contextTokens);
    const answer = await postJson({ ...good, messages: [{ role: 'user', content }] });
    expectError(answer, 400, {
      code: 'context_length_exceeded',
      message: expect.stringContaining(String(contextTokens)),
    });
  });

  test('a message without text is answered', async () => {
    expect((await postJson({ ...good, messages: [{ role: 'user', content: '' }] })).status).toBe(200);
  });

  test('an unknown model: 404, and every name of the served one is taken', async () => {
    expectError(await postJson({ ...good, model: 'gpt-9' }), 404, { code: 'model_not_found', param: 'model' });
    expect((await postJson({ ...good, model: 'kimi' })).status).toBe(200);
    expect((await postJson({ ...good, model: undefined })).status).toBe(200);
  });
});

describe('routes', () => {
  const to = (method: string, where: string) => ask(server.url + where, { method });

  test('unknown: 404', async () => {
    expectError(await to('GET', '/v2/chat?key=1'), 404, { code: 'route_unknown' });
    expectError(await to('POST', '/nothing'), 404);
  });

  test('known with another method: 405 that says which', async () => {
    const answer = await to('GET', path);
    expectError(answer, 405, { code: 'method_not_allowed' });
    expect(answer.headers.get('allow')).toBe('POST');
    expectError(await to('DELETE', `/v1/models/${modelId}`), 405);
  });

  test('malformed or not HTTP: 400 in the same shape', async () => {
    expectError(await to('GET', '/v1/models/%zz'), 400);
    const answer = await raw('GARBAGE\r\n\r\n');
    expect(answer).toMatch(/^HTTP\/1.1 400 Bad Request/);
    expect(JSON.parse(answer.split('\r\n\r\n')[1]!)).toMatchObject({ error: { type: 'invalid_request_error' } });
  });
});

test('every answer has a request id, the client’s own if it is fit', async () => {
  const idFor = async (id?: string) =>
    (await fetch(`${server.url}/livez`, id === undefined ? {} : { headers: { 'x-request-id': id } })).headers.get(
      'x-request-id',
    );
  expect(await idFor('abc-123')).toBe('abc-123');
  expect(await idFor()).toMatch(/^req-/);
  expect(await idFor('a b "c')).toMatch(/^req-/);
  expect((await post('{')).headers.get('x-request-id')).toMatch(/^req-/);
});

test('nothing of what clients wrote is logged', async () => {
  await postJson({ ...good, messages: [{ role: 'user', content: 'my secret plan' }] });
  await post('{"messages": "my secret plan');
  expect(server.log()).toContain('answered');
  expect(server.log()).not.toContain('secret');
});

/** Sends bytes on a bare socket, then `padding` more as one chunk, and returns what comes back until the server closes. */
function raw(head: string, padding = 0): Promise<string> {
  const { hostname, port } = new URL(server.url);
  return new Promise((resolve) => {
    let answer = '';
    const socket = connect(Number(port), hostname, () => {
      socket.write(head);
      if (padding > 0) socket.write(`${padding.toString(16)}\r\n${' '.repeat(padding)}\r\n0\r\n\r\n`);
    });
    socket.on('data', (bytes) => {
      answer += bytes.toString();
    });
    // The server may close while we still send.
    socket.on('error', () => {});
    socket.on('close', () => resolve(answer));
  });
}
