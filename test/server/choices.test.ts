/** Several answers to one request share its fate: refused together, and ended together when the client leaves. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { endless, type Harness, modelId, replies, startLocal } from './harness.ts';

let server: Harness;
beforeAll(async () => {
  server = await startLocal({ replies: [endless, ...replies], sequences: 2, queueLength: 1 });
});
afterAll(() => server.close());

const base = { model: modelId, temperature: 0, messages: [{ role: 'user' as const, content: 'Hi' }] };
const idle = () => expect.poll(() => server.engine.status()).toMatchObject({ running: 0, waiting: 0 });

test.each([true, false])('more answers than may wait: 429 for all of them (stream %s)', async (stream) => {
  const refused = server.client.chat.completions.create({ ...base, n: 4, stream });
  await expect(refused).rejects.toMatchObject({ status: 429, code: 'queue_full' });
  await idle();
  expect((await server.client.chat.completions.create({ ...base, n: 3 })).choices).toHaveLength(3);
});

test('a client that leaves ends all answers, running and waiting', async () => {
  const messages = [{ role: 'user' as const, content: 'Go on' }];
  const stream = await server.client.chat.completions.create({ ...base, messages, n: 3, stream: true });
  const seen = new Set<number>();
  for await (const { choices } of stream) {
    if (choices[0]?.delta.content) seen.add(choices[0].index);
    if (seen.size === 2) break;
  }
  await idle();
  expect(server.engine.status().statistics!.pages.used).toBe(0);
});
