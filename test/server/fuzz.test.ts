/** Broken requests drawn at random, the same in every run: none is the server's fault, and none disturbs the others. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openSocket } from './bare-socket.ts';
import { type Harness, modelId, startLocal } from './harness.ts';
import { drawBrokenHttp, drawMalformed } from './malformed.ts';
import { seeded } from './random.ts';

/** `make soak` sends ten thousand. */
const requests = 500;

let server: Harness;
beforeAll(async () => {
  server = await startLocal();
});
afterAll(() => server.close());

const hello = async () => {
  const messages = [{ role: 'user' as const, content: 'Hello' }];
  const answer = await server.client.chat.completions.create({ model: modelId, messages, temperature: 0 });
  return answer.choices[0]!.message.content;
};

test(`${requests} malformed bodies: each refused with a reason or answered, never the server's fault`, async () => {
  const random = seeded(20_261_124);
  let refused = 0;
  for (let i = 0; i < requests; i++) {
    const { path, body } = drawMalformed(random);
    const headers = { 'content-type': 'application/json' };
    const response = await fetch(server.url + path, { method: 'POST', headers, body });
    const text = await response.text();
    expect(response.status, `${path} ${body.slice(0, 500)} → ${text.slice(0, 500)}`).toBeLessThan(500);
    if (response.status !== 200) {
      refused++;
      expect(JSON.parse(text)).toMatchObject({ error: { message: expect.any(String), type: expect.any(String) } });
      expect(text).not.toMatch(/\n\s+at /);
    }
    if (i % 50 === 0) expect(await hello()).toBe('Hello there, friend!');
  }
  expect(refused).toBeGreaterThan(requests / 2);
  expect(server.engine.status()).toMatchObject({ running: 0, waiting: 0 });
  expect(server.server.inFlight.size).toBe(0);
});

test(`${requests} requests of changed bytes: each connection is answered or closed`, async () => {
  const random = seeded(7);
  for (let i = 0; i < requests; i++) {
    const { socket, closed } = openSocket(server.url, drawBrokenHttp(random));
    socket.end();
    for (const [, status] of (await closed).matchAll(/^HTTP\/1\.1 (\d+)/gm)) expect(Number(status)).toBeLessThan(500);
  }
  expect(await hello()).toBe('Hello there, friend!');
  expect(server.log()).not.toMatch(/"level":(50|60)/);
});
