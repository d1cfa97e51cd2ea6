/** Many clients of one engine at once. */
import { afterEach, expect, test } from 'vitest';
import { eventually } from '../scheduler/eventually.ts';
import { endless, type Harness, modelId, reply, startLocal } from './harness.ts';

let server: Harness;
afterEach(() => server.close());

const names = ['red', 'green', 'blue', 'white', 'black', 'brown', 'grey', 'pink'];
const replies = [endless, ...names.map((name) => reply(`Say ${name}`, `The colour is ${name}.<|im_end|>`))];
const ask = (content: string) => ({
  model: modelId,
  messages: [{ role: 'user' as const, content }],
  temperature: 0,
  stream: true as const,
});

test('get their own answers, together, while others come and leave', async () => {
  const started = await startLocal({ replies, sequences: 8, queueLength: 100 });
  server = started;
  const read = async (name: string) => {
    let text = '';
    for await (const chunk of await server.client.chat.completions.create(ask(`Say ${name}`))) {
      text += chunk.choices[0]?.delta.content ?? '';
    }
    return text;
  };
  const leave = async () => {
    let chunks = 0;
    for await (const _ of await server.client.chat.completions.create(ask('Go on'))) if (++chunks === 4) break;
  };
  const answers = await Promise.all([...names, ...names].flatMap((name) => [read(name), leave()]));
  expect(answers.filter((_, i) => i % 2 === 0)).toEqual([...names, ...names].map((name) => `The colour is ${name}.`));
  expect(Math.max(...started.runtime.batches.map(({ pageTables }) => pageTables.length))).toBeGreaterThan(1);
  await eventually(() => expect(server.engine.status().statistics!.pages.used).toBe(0));
  expect(server.engine.status()).toMatchObject({ running: 0, waiting: 0 });
});
