/**
 * Answers of models that do not know what they say: random logits, and Nano at temperature 1.5. Whatever ends its turn must be
 * valid by another's judgement; max_tokens may still cut an answer. PERIGEE_WALKS: how many of each; default 60.
 */
import Ajv2020 from 'ajv/dist/2020.js';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type ChatConstraint, type ChatRequest, type ChatStreamEvent, chat } from '../../src/api/complete.ts';
import type { Tool } from '../../src/chat/types.ts';
import { loadEngine } from '../../src/cli/load-engine.ts';
import { createConstraints } from '../../src/constrain/constraints.ts';
import { startLocalEngine } from '../../src/engine-process/local-engine.ts';
import { nanoFile } from '../../src/runtime/assets.ts';
import type { StepBatch } from '../../src/runtime/runtime.ts';
import { neutralSampling } from '../../src/sampling/defaults.ts';
import { SplitMix64 } from '../../src/sampling/random.ts';
import { createScheduler } from '../../src/scheduler/scheduler.ts';
import type { EngineClient } from '../../src/scheduler/types.ts';
import { openTokenizer } from '../../src/tokenizer/open.ts';
import type { Tokenizer } from '../../src/tokenizer/types.ts';
import { FakeRuntime } from '../scheduler/fake-runtime.ts';
import { selection } from '../scheduler/requests.ts';
import { cases, partlyEnforced } from './schemas.ts';
import { tokenizer, vocabularyPath } from './support.ts';

const walks = Number(process.env.PERIGEE_WALKS ?? 60);
const ajv = new Ajv2020.default({ strict: false, validateFormats: false });
const schemas = cases.map(({ schema }) => ({ schema, validate: ajv.compile(schema as object) }));
/** Arguments are objects. */
const tools = schemas
  .filter(({ schema }) => (schema as { type?: string }).type === 'object')
  .map(({ schema, validate }, i) => ({ name: `tool_${i}`, schema, validate }));

/** Logits drawn anew for each token, with what ends strings, values and turns made likely, so that most walks end. */
class RandomRuntime extends FakeRuntime {
  readonly #random = new SplitMix64(7);
  readonly #likely: readonly number[];

  constructor() {
    super({ next: () => 0, vocabulary: tokenizer.vocabularySize, pages: 64, batchTokens: 256 });
    const closing = ['"', '}', ']', '":', '",', ' "', '"}', '0'].flatMap((text) => tokenizer.encode(text));
    const markers = [...tokenizer.specials].filter(([name]) => name.includes('tool_call')).map(([, id]) => id);
    this.#likely = [...closing, ...markers, ...tokenizer.stopTokens];
  }

  override async step(batch: StepBatch): Promise<Float32Array> {
    const logits = await super.step(batch);
    const { vocabulary } = this.config;
    for (let id = 0; id < logits.length; id++) logits[id] = 3 * this.#random.uniform();
    for (let row = 0; row < logits.length; row += vocabulary) for (const id of this.#likely) logits[row + id]! += 6;
    return logits;
  }
}

interface Model {
  readonly engine: EngineClient;
  readonly tokenizer: Tokenizer;
}

async function walk(
  { engine, tokenizer }: Model,
  constraint: ChatConstraint,
  seed: number,
): Promise<ChatStreamEvent[]> {
  const declared: Tool[] = tools.map(({ name, schema }) => ({
    name,
    declaration: { type: 'function', function: { name, parameters: schema } },
  }));
  const request: ChatRequest = {
    conversation: {
      messages: [{ role: 'user', content: 'What is the weather in Ulm?' }],
      tools: constraint.kind === 'tools' ? declared : [],
      templateOptions: {},
    },
    sampling: { ...neutralSampling, temperature: 1.5, seed },
    maxTokens: 300,
    stopStrings: [],
    stopTokens: [],
    ignoreEndOfTurn: false,
    toolCalls: true,
    parallelToolCalls: true,
    constraint,
  };
  const events: ChatStreamEvent[] = [];
  for await (const event of chat(engine, tokenizer, request)) events.push(event);
  return events;
}

function judged(events: readonly ChatStreamEvent[], validate: (value: unknown) => boolean): string {
  const text = events.map((event) => (event.type === 'text' ? event.text : '')).join('');
  const finished = events.find((event) => event.type === 'finished')!;
  if (finished.reason === 'length') return 'cut';
  return isValid(text, validate) ? 'valid' : `not valid: ${text}`;
}

function isValid(text: string, validate: (value: unknown) => boolean): boolean {
  try {
    return validate(JSON.parse(text));
  } catch {
    return false;
  }
}

async function expectValid(model: Model): Promise<void> {
  const found = new Map<string, number>();
  for (let seed = 0; seed < walks; seed++) {
    const { schema, validate } = schemas[seed % schemas.length]!;
    const verdict = judged(await walk(model, { kind: 'schema', schema }, seed), validate);
    found.set(verdict, (found.get(verdict) ?? 0) + 1);
  }
  expect([...found.keys()].filter((verdict) => verdict.startsWith('not'))).toEqual([]);
  expect(found.get('valid')).toBeGreaterThan(walks / 2);
}

async function expectValidCalls(model: Model): Promise<void> {
  let complete = 0;
  for (let seed = 0; seed < walks; seed++) {
    const events = await walk(model, { kind: 'tools' }, seed);
    const finished = events.find((event) => event.type === 'finished')!;
    if (finished.reason !== 'length') expect(finished.calls.length).toBeGreaterThan(0);
    for (const [index, call] of finished.calls.entries()) {
      if (!call.complete) continue;
      const tool = tools.find(({ name }) => name === call.name);
      expect(call.id).toBe(`functions.${call.name}:${index}`);
      expect(
        isValid(call.arguments, (value) => tool!.validate(value) as boolean),
        call.arguments,
      ).toBe(true);
      complete++;
    }
  }
  expect(complete).toBeGreaterThan(walks / 4);
}

describe('a model of random logits', { timeout: 600_000 }, () => {
  const constraints = createConstraints({ tokenizer: vocabularyPath });
  const engine = createScheduler(new RandomRuntime(), { selection, constraints });
  afterAll(() => engine.close());

  it('answers with valid JSON only', () => expectValid({ engine, tokenizer }));

  it('comes to an end under schemas that are not strict', async () => {
    for (let seed = 0; seed < walks; seed++) {
      const [schema] = partlyEnforced[seed % partlyEnforced.length]!;
      const constraint = { kind: 'schema' as const, schema: { type: 'object', ...schema } };
      expect(judged(await walk({ engine, tokenizer }, constraint, seed), () => true)).toMatch(/^(valid|cut)$/);
    }
  });

  it('calls declared tools with valid arguments only', () => expectValidCalls({ engine, tokenizer }));
});

describe('Nano at temperature 1.5', { timeout: 600_000 }, () => {
  let model: Model;
  beforeAll(async () => {
    const loadOptions = { model: nanoFile, backend: 'wasm', threads: 1 };
    model = { engine: await startLocalEngine({ loadEngine, loadOptions }), tokenizer: await openTokenizer(nanoFile) };
  });
  afterAll(() => model.engine.close());

  it('answers with valid JSON only', () => expectValid(model));
  it('calls declared tools with valid arguments only', () => expectValidCalls(model));
});
