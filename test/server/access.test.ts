import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { checkHost } from '../../src/server/auth.ts';
import { ask, type Harness, modelId, startLocal } from './harness.ts';

describe('without a key', () => {
  let server: Harness;
  beforeAll(async () => {
    server = await startLocal();
  });
  afterAll(() => server.close());

  const get = (path: string) => ask(server.url + path);

  test('listens on the loopback address', () => {
    expect(new URL(server.url).hostname).toBe('127.0.0.1');
  });

  test('/v1/models lists the model, and describes it under each of its names', async () => {
    const description = {
      id: modelId,
      object: 'model',
      created: 1_700_000_000,
      owned_by: 'perigee',
      max_model_len: 4096,
    };
    expect((await get('/v1/models')).body).toMatchObject({ object: 'list', data: [description] });
    for (const name of [modelId, encodeURIComponent(modelId), 'kimi']) {
      expect((await get(`/v1/models/${name}`)).body).toMatchObject(description);
    }
    expect(await get('/v1/models/other')).toMatchObject({ status: 404, body: { error: { code: 'model_not_found' } } });
    expect((await server.client.models.retrieve(modelId)).id).toBe(modelId);
  });

  test('/health shows the configuration and why, and the queue', async () => {
    expect(await get('/health')).toMatchObject({
      status: 200,
      body: {
        status: 'ready',
        model: modelId,
        backend: { backend: 'wasm', isa: 'fake', threads: 1, reasons: ['a test asked for it'] },
        engine: {
          state: 'ready',
          restarts: 0,
          failures_in_a_row: 0,
          restarts_in_milliseconds: null,
          last_failure: null,
        },
        queue: { running: 0, waiting: 0 },
        cache: {
          pages: { used: 0, cached: expect.any(Number), free: expect.any(Number) },
          prompt_tokens: expect.any(Number),
          cached_tokens: expect.any(Number),
          preemptions: 0,
        },
      },
    });
    expect((await get('/livez')).status).toBe(200);
    expect((await get('/readyz')).status).toBe(200);
  });
});

describe('with a key', () => {
  let server: Harness;
  beforeAll(async () => {
    server = await startLocal({ apiKey: 'open-sesame' });
  });
  afterAll(() => server.close());

  const status = async (path: string, headers: Record<string, string> = {}) =>
    (await fetch(server.url + path, { headers })).status;

  test('health is open', async () => {
    for (const path of ['/health', '/livez', '/readyz']) expect(await status(path)).toBe(200);
  });

  test('everything else needs it, unknown routes too', async () => {
    for (const path of ['/v1/models', '/tokenize', '/tokenizer_info', '/metrics', '/openapi.json', '/nothing'])
      expect(await status(path)).toBe(401);
    const response = await fetch(`${server.url}/v1/chat/completions`, { method: 'POST', body: '{' });
    expect(response.status).toBe(401);
    expect(response.headers.get('www-authenticate')).toBe('Bearer');
    expect(await response.json()).toMatchObject({ error: { type: 'authentication_error', code: 'invalid_api_key' } });
  });

  test('every route there is refuses who has none, but for health', async () => {
    const authorization = 'Bearer open-sesame';
    const { body } = await ask(`${server.url}/openapi.json`, { headers: { authorization } });
    const open: string[] = [];
    for (const [path, methods] of Object.entries<object>(body.paths)) {
      for (const method of Object.keys(methods)) {
        const { status } = await fetch(server.url + path.replace(/\{.*\}/, 'x'), { method: method.toUpperCase() });
        if (status !== 401) open.push(path);
      }
    }
    expect(open.toSorted()).toEqual(['/health', '/livez', '/readyz']);
  });

  test('as a bearer token or in x-api-key, and whole', async () => {
    expect(await status('/v1/models', { authorization: 'Bearer open-sesame' })).toBe(200);
    expect(await status('/v1/models', { 'x-api-key': 'open-sesame' })).toBe(200);
    for (const wrong of ['open', 'open-sesame2', 'OPEN-SESAME', '']) {
      expect(await status('/v1/models', { authorization: `Bearer ${wrong}` })).toBe(401);
    }
    expect(await status('/v1/models', { authorization: 'Basic open-sesame' })).toBe(401);
    expect((await server.client.models.list()).data).toHaveLength(1);
  });

  test('it is not logged', () => {
    expect(server.log()).not.toContain('sesame');
  });
});

test('an address that others can reach needs a key, or the word that it may be open', () => {
  for (const host of ['0.0.0.0', '::', '192.168.1.5', 'example.org']) {
    for (const none of [undefined, '']) {
      expect(() => checkHost(host, none, false)).toThrow(
        expect.objectContaining({ code: 'HOST_NEEDS_KEY', exitCode: 2 }),
      );
    }
    checkHost(host, 'key', false);
    checkHost(host, undefined, true);
  }
  for (const host of ['127.0.0.1', '127.1.2.3', 'localhost', '::1']) checkHost(host, undefined, false);
});
