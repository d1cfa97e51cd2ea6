/** Requests to a scheduler over the fake runtime, and what its model answers without any engine. */
import { createScheduler } from '../../src/scheduler/scheduler.ts';
import type { EngineClient, GenerationEvent, GenerationRequest, RequestLimits } from '../../src/scheduler/types.ts';
import { FakeRuntime, type FakeRuntimeOptions, greedy } from './fake-runtime.ts';

export const selection = { backend: 'wasm', isa: 'fake', threads: 1, reasons: [] };

/** Depends on every token before, and on their order. */
export const hash = (history: readonly number[]) => history.reduce((sum, token) => (sum * 31 + token + 7) % 61, 1);

export function start({
  queueLength,
  deadlineMilliseconds,
  ...options
}: Partial<FakeRuntimeOptions> & RequestLimits = {}) {
  const runtime = new FakeRuntime({ next: hash, ...options });
  return { runtime, engine: createScheduler(runtime, { selection, queueLength, deadlineMilliseconds }) };
}

export function request(prompt: readonly number[], more: Partial<GenerationRequest> = {}): GenerationRequest {
  return { id: 'r', prompt, maxTokens: 8, sampling: greedy, stopTokens: [], ...more };
}

export async function collect(engine: EngineClient, wanted: GenerationRequest) {
  const events: GenerationEvent[] = [];
  for await (const event of engine.generate(wanted)) events.push(event);
  const tokens = events.flatMap((event) => (event.type === 'token' ? [event.token] : []));
  const started = events.find((event) => event.type === 'started')!;
  const ended = events.find((event) => event.type === 'ended')!;
  return { events, tokens, started, ended };
}

/** What the fake model says after `prompt`. */
export function expected(prompt: readonly number[], count: number): number[] {
  const history = [...prompt];
  for (let i = 0; i < count; i++) history.push(hash(history));
  return history.slice(prompt.length);
}

export const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => (from + i) % 60);

/** A prompt of `length` tokens that begins like no other. */
export const unlike = (seed: number, length: number) =>
  Array.from({ length }, (_, i) => (seed * 17 + i * (seed + 3)) % 60);
