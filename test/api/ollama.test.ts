/** What Ollama's requests mean for the model, and thoughts in its answers. */
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import type { ChatStreamEvent } from '../../src/api/complete.ts';
import { toLines, toWhole } from '../../src/api/ollama/to-lines.ts';
import { toChat, toGenerate } from '../../src/api/ollama/to-request.ts';
import { neutralSampling } from '../../src/sampling/defaults.ts';
import { openTokenizer } from '../../src/tokenizer/open.ts';
import { collect } from './support.ts';

const tokenizer = await openTokenizer(fileURLToPath(new URL('../fixtures/moonlight', import.meta.url)));
const messages = [{ role: 'user', content: 'Hi' }];
const read = (more: object = {}, context: object = {}) => {
  const { wanted } = toChat({ model: 'm', messages, ...more }, { tokenizer, ...context });
  if (wanted.kind !== 'chat') throw new Error(wanted.kind);
  return wanted.request;
};

describe('options', () => {
  test('are what they are called here', () => {
    const options = { temperature: 0.5, top_k: 40, top_p: 0.9, min_p: 0.05, repeat_penalty: 1.1, seed: 7, stop: 'x' };
    const more = { presence_penalty: 0.1, frequency_penalty: 0.2, num_predict: 30, num_ctx: 4096, num_gpu: 1 };
    expect(read({ options: { ...options, ...more } })).toMatchObject({
      sampling: {
        temperature: 0.5,
        topK: 40,
        topP: 0.9,
        minP: 0.05,
        repetitionPenalty: 1.1,
        presencePenalty: 0.1,
        frequencyPenalty: 0.2,
        seed: 7,
      },
      stopStrings: ['x'],
      maxTokens: 30,
    });
  });

  test.each([-1, -2, 0])('num_predict %d is no limit', (num_predict) => {
    expect(read({ options: { num_predict } }).maxTokens).toBeNull();
  });

  test('left open, or null, are the recommendation', () => {
    const defaults = { ...neutralSampling, temperature: 0.6 };
    expect(read({ options: null }, { defaults }).sampling.temperature).toBe(0.6);
    expect(read({ options: { temperature: null, stop: null } }, { defaults }).sampling.temperature).toBe(0.6);
  });
});

describe('requests', () => {
  test('calls and results without ids find each other by name, with ids by these', () => {
    const call = (name: string, id?: string) => ({ ...(id && { id }), function: { name, arguments: { a: 1 } } });
    const history = [
      { role: 'assistant', content: '', tool_calls: [call('f'), call('g', 'call_1')] },
      { role: 'tool', tool_name: 'f', content: '1' },
      { role: 'tool', tool_name: 'g', tool_call_id: 'call_1', content: '2' },
    ];
    const [, assistant, first, second] = read({ messages: [...messages, ...history] }).conversation.messages;
    expect(assistant!.toolCalls).toEqual([
      { id: 'f', name: 'f', arguments: '{"a": 1}' },
      { id: 'call_1', name: 'g', arguments: '{"a": 1}' },
    ]);
    expect([first!.toolCallId, second!.toolCallId]).toEqual(['f', 'call_1']);
  });

  test.each([
    [{ format: 'json' }, { constraint: { kind: 'json' } }],
    [{ format: { type: 'array' } }, { constraint: { kind: 'schema', schema: { type: 'array' } } }],
    [{ format: '' }, { constraint: null }],
    [{ think: false }, { conversation: { templateOptions: { thinking: false } } }],
    [{ think: 'low' }, { conversation: { templateOptions: { thinking: true, reasoning_effort: 'low' } } }],
  ])('%j', (more, expected) => {
    expect(read(more)).toMatchObject(expected);
  });

  test('stream unless told otherwise; a tag of the model is none', () => {
    expect(toChat({ model: 'm:latest', messages }, { tokenizer })).toMatchObject({ model: 'm', stream: true });
    expect(toGenerate({ model: 'm', prompt: 'x', stream: false }, { tokenizer })).toMatchObject({ stream: false });
  });

  test('a prompt may bring a system text', () => {
    const { wanted } = toGenerate({ model: 'm', prompt: 'Hi', system: 'Be brief.' }, { tokenizer });
    expect(wanted).toMatchObject({
      request: { conversation: { messages: [{ role: 'system', content: 'Be brief.' }, ...messages] } },
    });
  });
});

test('thoughts stand beside the text, in lines and in the whole', async () => {
  const times = { queueMilliseconds: 1, promptMilliseconds: 2, decodeMilliseconds: 3 };
  const events: ChatStreamEvent[] = [
    { type: 'started', promptTokens: 5, cachedTokens: 3 },
    { type: 'reasoning', text: 'Hm' },
    { type: 'reasoning', text: '.' },
    { type: 'text', text: 'Yes' },
    {
      type: 'finished',
      reason: 'length',
      stopString: null,
      calls: [],
      promptTokens: 5,
      cachedTokens: 3,
      completionTokens: 4,
      reasoningTokens: 2,
      timing: { ...times, promptTokens: 5, decodedTokens: 4 },
    },
  ];
  async function* indexed() {
    for (const event of events) yield [0, event] as const;
  }
  const lines = await collect(toLines(indexed(), 'm', 'chat'));
  expect(lines.map((line) => 'message' in line && line.message)).toEqual([
    { role: 'assistant', content: '', thinking: 'Hm' },
    { role: 'assistant', content: '', thinking: '.' },
    { role: 'assistant', content: 'Yes' },
    { role: 'assistant', content: '' },
  ]);
  expect(await toWhole(toLines(indexed(), 'm', 'chat'), 'chat')).toMatchObject({
    message: { role: 'assistant', content: 'Yes', thinking: 'Hm.' },
    done_reason: 'length',
    prompt_eval_count: 5,
    eval_count: 4,
    total_duration: 6_000_000,
    load_duration: 1_000_000,
    prompt_eval_duration: 2_000_000,
    eval_duration: 3_000_000,
  });
  expect(await toWhole(toLines(indexed(), 'm', 'generate'), 'generate')).toMatchObject({
    response: 'Yes',
    thinking: 'Hm.',
  });
});
