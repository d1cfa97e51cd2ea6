/** A whole server over a fake model that knows its answers, on a real port. */
import { fileURLToPath } from 'node:url';
import OpenAI from 'openai';
import { pino } from 'pino';
import { startLocalEngine } from '../../src/engine-process/local-engine.ts';
import { startRemoteEngine } from '../../src/engine-process/remote-engine.ts';
import { pageTokens, type StepBatch } from '../../src/runtime/runtime.ts';
import type { EngineClient } from '../../src/scheduler/types.ts';
import { listen } from '../../src/server/lifecycle.ts';
import { createServer, type Server } from '../../src/server/server.ts';
import { openTokenizer } from '../../src/tokenizer/open.ts';
import type { FakeLoadOptions } from '../engine-process/fake-engine-main.ts';
import { type Reply, replay } from '../engine-process/replay.ts';
import { FakeRuntime } from '../scheduler/fake-runtime.ts';
import { inspection } from './inspection.ts';

const fixtures = fileURLToPath(new URL('../fixtures/moonlight', import.meta.url));
const entry = fileURLToPath(new URL('../engine-process/fake-engine-main.ts', import.meta.url));
const contextPages = 64;

export const tokenizer = await openTokenizer(fixtures);
export const silent = pino({ level: 'silent' });
export const modelId = 'moonshotai/Kimi-Test';

/** A reply to prompts that have a message whose whole text is `when`; `say` may name control tokens. */
export function reply(when: string, say: string): Reply {
  return {
    when: tokenizer.encode(when),
    after: tokenizer.specials.get('<|im_middle|>')!,
    say: tokenizer.encode(say, { specials: true }),
  };
}

/** Replies that never end: the last token repeats until something stops it. */
export const endless = reply('Go on', ' and on');
export const replies: readonly Reply[] = [endless, reply('', 'Hello there, friend!<|im_end|>')];

export interface HarnessOptions {
  readonly replies?: readonly Reply[];
  /** What an engine in this process says next; default: its reply. */
  readonly next?: (history: readonly number[]) => number;
  readonly queueLength?: number;
  /** Requests that generate at once, of an engine in this process; default 1. */
  readonly sequences?: number;
  /** Rows of logits of a step; default: one for each sequence. */
  readonly outputs?: number;
  /** Most time a request may take, of an engine in this process. */
  readonly deadlineMilliseconds?: number;
  readonly apiKey?: string;
  /** An engine in a process of its own hangs in the step that holds this token. */
  readonly hang?: number;
  readonly beforeStep?: (batch: StepBatch) => Promise<void> | void;
}

export interface Harness {
  readonly url: string;
  readonly client: OpenAI;
  readonly server: Server;
  readonly engine: EngineClient;
  /** Everything that was logged, as text. */
  readonly log: () => string;
  readonly close: () => Promise<void>;
}

export async function startLocal(options: HarnessOptions = {}): Promise<Harness & { runtime: FakeRuntime }> {
  const runtime = new FakeRuntime({
    next: options.next ?? replay(options.replies ?? replies),
    vocabulary: tokenizer.vocabularySize,
    pages: contextPages,
    batchTokens: 256,
    ...(options.sequences !== undefined && { sequences: options.sequences }),
    ...(options.outputs !== undefined && { outputs: options.outputs }),
    ...(options.beforeStep && { beforeStep: options.beforeStep }),
  });
  const selection = { backend: 'wasm', isa: 'fake', threads: 1, reasons: ['a test asked for it'] };
  const engine = await startLocalEngine({
    loadEngine: async () => ({ runtime, selection }),
    loadOptions: {},
    limits: { queueLength: options.queueLength, deadlineMilliseconds: options.deadlineMilliseconds },
  });
  return { ...(await serve(engine, options)), runtime };
}

/** The same with the engine in a process of its own. */
export async function startRemote(options: HarnessOptions = {}) {
  const loadOptions: FakeLoadOptions = {
    vocabulary: tokenizer.vocabularySize,
    replies: options.replies ?? replies,
    ...(options.hang !== undefined && { hang: options.hang }),
  };
  const remote = await startRemoteEngine({ entry, loadOptions, limits: { queueLength: options.queueLength } });
  return { ...(await serve(remote, options)), remote };
}

async function serve(engine: EngineClient, options: HarnessOptions): Promise<Harness> {
  const lines: string[] = [];
  const logger = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) });
  const model = { id: modelId, aliases: ['kimi'], created: 1_700_000_000, inspection };
  const server = createServer({ engine, tokenizer, model, apiKey: options.apiKey, logger });
  const url = await listen(server, { port: 0, apiKey: options.apiKey });
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: options.apiKey ?? 'unused', maxRetries: 0 });
  const close = async () => {
    await server.inFlight.drain(0);
    await server.app.close();
    await engine.close();
  };
  return { url, client, server, engine, log: () => lines.join(''), close };
}

export const contextTokens = contextPages * pageTokens;

// biome-ignore lint/suspicious/noExplicitAny: answers are whatever the server said; expect() looks at them
type Answer = any;

/** Asks without any client library. */
export async function ask(
  url: string,
  init?: RequestInit,
): Promise<{ status: number; headers: Headers; body: Answer }> {
  const response = await fetch(url, init);
  return { status: response.status, headers: response.headers, body: await response.json() };
}

export function postJson(url: string, body: unknown) {
  return ask(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
}
