/** Native code faults while it generates: a real model, a real engine process, a real signal. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import OpenAI, { APIConnectionError, APIError } from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { LoadOptions } from '../../src/cli/load-engine.ts';
import { type RemoteEngine, startRemoteEngine } from '../../src/engine-process/remote-engine.ts';
import { nanoFile } from '../../src/runtime/assets.ts';
import { nativeSupport } from '../../src/runtime/native-addon.ts';
import { listen } from '../../src/server/lifecycle.ts';
import { createServer, type Server } from '../../src/server/server.ts';
import { openTokenizer } from '../../src/tokenizer/open.ts';
import { eventually } from '../scheduler/eventually.ts';
import { ask, silent } from './harness.ts';
import { inspection } from './inspection.ts';

const support = nativeSupport();
const probe = fileURLToPath(new URL('../../build/native/probe.node', import.meta.url));
const lacking = !support.available ? support.why : existsSync(probe) ? null : 'build/native/probe.node is not built';

describe.skipIf(lacking !== null)(`the native backend${lacking === null ? '' : ` (skipped: ${lacking})`}`, () => {
  let engine: RemoteEngine;
  let server: Server;
  let url: string;
  let client: OpenAI;
  beforeAll(async () => {
    const entry = fileURLToPath(new URL('faulting-engine-main.ts', import.meta.url));
    const loadOptions: LoadOptions = { model: nanoFile, backend: 'native', context: 2048 };
    engine = await startRemoteEngine({ entry, loadOptions });
    const tokenizer = await openTokenizer(nanoFile);
    server = createServer({
      engine,
      tokenizer,
      model: { id: 'nano', aliases: [], created: 0, inspection },
      logger: silent,
    });
    url = await listen(server, { port: 0 });
    client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', maxRetries: 0 });
  });
  afterAll(async () => {
    await server.app.close();
    await engine.close();
  });

  const question = {
    model: 'nano',
    messages: [{ role: 'user' as const, content: 'What is 17 + 25?' }],
    temperature: 0,
  };
  /** Goes on to the limit, far longer than any fault takes to come. */
  const long = { ...question, ignore_eos: true, max_tokens: 1900 };

  test.each([
    ['SIGSEGV', 'SIGSEGV'],
    ['SIGBUS', 'SIGBUS'],
    ['SIGABRT', 'SIGABRT'],
    ['a thread that reads where nothing is', 'SIGUSR2'],
  ] as const)('%s ends the engine process, not the server', async (_, signal) => {
    const before = engine.status().restarts;
    const stream = await client.chat.completions.create({ ...long, stream: true });
    const waiting = client.chat.completions.create(long);
    const refused = expect(waiting).rejects.toMatchObject({ status: 500, code: 'engine_failed' });
    let heard = false;
    const error: unknown = await (async () => {
      for await (const _chunk of stream) {
        if (!heard) process.kill(engine.pid!, signal);
        heard = true;
      }
    })().catch((caught) => caught);
    // An error that was told, not a connection that was cut.
    expect(error).toBeInstanceOf(APIError);
    expect(error).not.toBeInstanceOf(APIConnectionError);
    expect((error as APIError).message).toContain(signal === 'SIGUSR2' ? 'SIGSEGV' : signal);
    await refused;

    await eventually(async () => expect((await ask(`${url}/health`)).status).toBe(200));
    const { body } = await ask(`${url}/health`);
    expect(body).toMatchObject({
      status: 'ready',
      backend: { backend: 'native' },
      engine: { restarts: before + 1, failures_in_a_row: 1 },
    });
    const answer = await client.chat.completions.create(question);
    expect(answer.choices[0]!.message.content).toContain('42');
  });
});
