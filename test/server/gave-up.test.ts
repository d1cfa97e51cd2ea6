/** An engine process that dies at once each time it is started: the front neither spins nor ends, and says how it is. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type RemoteEngine, startRemoteEngine } from '../../src/engine-process/remote-engine.ts';
import { listen } from '../../src/server/lifecycle.ts';
import { createServer, type Server } from '../../src/server/server.ts';
import type { FakeLoadOptions } from '../engine-process/fake-engine-main.ts';
import { eventually } from '../scheduler/eventually.ts';
import { ask, postJson, replies, silent, tokenizer } from './harness.ts';
import { inspection } from './inspection.ts';

const entry = fileURLToPath(new URL('../engine-process/fake-engine-main.ts', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'perigee-'));
const brokenBy = join(folder, 'broken');

let engine: RemoteEngine;
let server: Server;
let url: string;
beforeAll(async () => {
  const loadOptions: FakeLoadOptions = { vocabulary: tokenizer.vocabularySize, replies, brokenBy };
  engine = await startRemoteEngine({ entry, loadOptions });
  server = createServer({
    engine,
    tokenizer,
    model: { id: 'fake', aliases: [], created: 0, inspection },
    logger: silent,
  });
  url = await listen(server, { port: 0 });
});
afterAll(async () => {
  await server.app.close();
  await engine.close();
  rmSync(folder, { recursive: true });
});

test('says in the end that the engine is not started again, and answers requests with that', async () => {
  writeFileSync(brokenBy, '');
  process.kill(engine.pid!, 'SIGKILL');
  await eventually(async () => {
    const { status, body } = await ask(`${url}/health`);
    expect(status).toBe(503);
    expect(body).toMatchObject({
      status: 'failed',
      engine: {
        state: 'failed',
        restarts: 4,
        failures_in_a_row: 5,
        restarts_in_milliseconds: null,
        last_failure: expect.stringContaining('SIGKILL'),
      },
    });
  });
  const refused = await postJson(`${url}/v1/chat/completions`, {
    model: 'fake',
    messages: [{ role: 'user', content: 'Hello' }],
  });
  expect(refused).toMatchObject({ status: 503, body: { error: { code: 'engine_gave_up' } } });
});
