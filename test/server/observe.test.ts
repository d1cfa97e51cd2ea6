/** What operators read: metrics under vLLM's names, and the OpenAPI document. */
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ask, endless, type Harness, modelId, postJson, reply, startLocal } from './harness.ts';

let server: Harness;
beforeAll(async () => {
  // A step takes a while, so that an endless answer does not fill the context before its client's leaving is noticed.
  const beforeStep = () => delay(1);
  server = await startLocal({ replies: [endless, reply('', 'Hello there, friend!<|im_end|>')], beforeStep });
});
afterAll(() => server.close());

const chat = (content: string, more: object = {}) =>
  server.client.chat.completions.create({
    model: modelId,
    messages: [{ role: 'user' as const, content }],
    temperature: 0,
    ...more,
    stream: false,
  });

/** Values of the exposition format, by name and labels. */
async function scrape() {
  const response = await fetch(`${server.url}/metrics`);
  const values = new Map<string, number>();
  for (const line of (await response.text()).split('\n')) {
    const [, name, value] = /^([^#]\S*(?:\{.*\})?) (\S+)$/.exec(line) ?? [];
    if (name !== undefined) values.set(name, Number(value));
  }
  const of = (name: string, labels = '') => values.get(`${name}{model_name="${modelId}",engine="0"${labels}}`);
  return { type: response.headers.get('content-type'), values, of };
}

describe('/metrics', () => {
  test('has all from the start, in the text format', async () => {
    const { type, of } = await scrape();
    expect(type).toMatch(/^text\/plain; version=0\.0\.4/);
    for (const name of [
      'num_requests_running',
      'num_requests_waiting',
      'kv_cache_usage_perc',
      'num_preemptions_total',
    ]) {
      expect(of(`vllm:${name}`)).toBe(0);
    }
    for (const name of ['prompt_tokens', 'generation_tokens', 'prefix_cache_queries', 'prefix_cache_hits']) {
      expect(of(`vllm:${name}_total`)).toBe(0);
    }
  });

  test('counts requests, tokens and times, whatever the route', async () => {
    const before = await scrape();
    const since = (name: string, now: typeof before, labels = '') =>
      now.of(name, labels)! - (before.of(name, labels) ?? 0);
    const first = await chat('Hi');
    const cut = await chat('Hi', { max_tokens: 2 });
    const text = await server.client.completions.create({ model: modelId, prompt: '<|im_middle|>', max_tokens: 3 });
    const usages = [first, cut, text].map(({ usage }) => usage!);
    const now = await scrape();
    const total = (field: 'prompt_tokens' | 'completion_tokens') =>
      usages.reduce((sum, usage) => sum + usage[field], 0);
    expect(since('vllm:prompt_tokens_total', now)).toBe(total('prompt_tokens'));
    expect(since('vllm:generation_tokens_total', now)).toBe(total('completion_tokens'));
    expect(since('vllm:prefix_cache_hits_total', now)).toBe(
      usages.reduce((sum, usage) => sum + usage.prompt_tokens_details!.cached_tokens!, 0),
    );
    expect(since('vllm:request_success_total', now, ',finished_reason="stop"')).toBe(1);
    expect(since('vllm:request_success_total', now, ',finished_reason="length"')).toBe(2);
    for (const name of ['time_to_first_token', 'e2e_request_latency', 'request_queue_time', 'request_inference_time']) {
      expect(now.of(`vllm:${name}_seconds_count`)).toBe(3);
      expect(now.of(`vllm:${name}_seconds_sum`)).toBeGreaterThan(0);
    }
    expect(now.of('vllm:inter_token_latency_seconds_count')).toBe(total('completion_tokens') - 3);
  });

  test('tells a client that left from a stop text', async () => {
    const left = new AbortController();
    const stream = await server.client.chat.completions.create(
      { model: modelId, messages: [{ role: 'user', content: 'Go on' }], stream: true },
      { signal: left.signal },
    );
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
    left.abort();
    await expect
      .poll(async () => (await scrape()).of('vllm:request_success_total', ',finished_reason="abort"'), {
        timeout: 10_000,
      })
      .toBe(1);
    const before = await scrape();
    await chat('Go on', { stop: 'on on' });
    const now = await scrape();
    expect(now.of('vllm:request_success_total', ',finished_reason="stop"')).toBe(
      before.of('vllm:request_success_total', ',finished_reason="stop"')! + 1,
    );
    expect(now.of('vllm:num_requests_running')).toBe(0);
  });

  test('does not count what was refused', async () => {
    const before = await scrape();
    await postJson(`${server.url}/v1/completions`, { prompt: Array(5000).fill(1) });
    const now = await scrape();
    const counts = ({ values }: typeof now) => [...values].filter(([name]) => name.startsWith('vllm:request_success'));
    expect(counts(now)).toEqual(counts(before));
  });
});

test('/openapi.json describes every route, with the schemas requests are checked by', async () => {
  const { status, body } = await ask(`${server.url}/openapi.json`);
  expect(status).toBe(200);
  expect(body.openapi).toBe('3.1.0');
  const paths = ['/v1/chat/completions', '/v1/completions', '/v1/models', '/tokenize', '/metrics', '/health'];
  expect(Object.keys(body.paths)).toEqual(expect.arrayContaining(paths));
  const schema = body.paths['/v1/completions'].post.requestBody.content['application/json'].schema;
  expect(schema.required).toEqual(['prompt']);
  expect(schema.properties.n).toMatchObject({ type: 'integer', minimum: 1, maximum: 16 });
});
