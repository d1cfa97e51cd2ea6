/** What Anthropic's requests mean for the model, and thoughts in its answers. */
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { toEvents } from '../../src/api/anthropic/to-events.ts';
import { toMessage } from '../../src/api/anthropic/to-message.ts';
import { toMessagesRequest } from '../../src/api/anthropic/to-request.ts';
import { type ChatStreamEvent, chat } from '../../src/api/complete.ts';
import { neutralSampling } from '../../src/sampling/defaults.ts';
import { openTokenizer } from '../../src/tokenizer/open.ts';
import { collect, fakeEngine } from './support.ts';

const tokenizer = await openTokenizer(fileURLToPath(new URL('../fixtures/moonlight', import.meta.url)));
const base = { model: 'm', max_tokens: 100, messages: [{ role: 'user', content: 'Hi' }] };
const read = (more: object = {}, context: object = {}) =>
  toMessagesRequest({ ...base, ...more }, { tokenizer, kimi: false, ...context });

describe('temperature', () => {
  test.each([
    [{ temperature: 0.5 }, { kimi: true }, 0.3],
    [{}, { kimi: true }, 0.6],
    [{ temperature: 0.5 }, {}, 0.5],
    [{}, {}, 1],
    [{}, { kimi: true, defaults: { ...neutralSampling, temperature: 0.4 } }, 0.4],
    [{ temperature: 1 }, { kimi: true, defaults: { ...neutralSampling, temperature: 0.4 } }, 0.6],
  ])('of %j under %j is %d', (more, context, temperature) => {
    expect(read(more, context).request.sampling.temperature).toBe(temperature);
  });
});

describe('messages', () => {
  test('system texts come first, in one message; a later system message stays where it is', () => {
    const system = [
      { type: 'text', text: 'One.', cache_control: { type: 'ephemeral' } },
      { type: 'text', text: 'Two.' },
    ];
    const messages = [...base.messages, { role: 'system', content: 'Three.' }];
    expect(read({ system, messages }).request.conversation.messages).toEqual([
      { role: 'system', content: 'One.\nTwo.' },
      { role: 'user', content: 'Hi' },
      { role: 'system', content: 'Three.' },
    ]);
    expect(read({ system: '' }).request.conversation.messages).toEqual(base.messages);
  });

  test('results become messages before the text beside them; an error says so', () => {
    const content = [
      { type: 'text', text: 'And now?' },
      { type: 'tool_result', tool_use_id: 'toolu_1', content: 'fine' },
      { type: 'tool_result', tool_use_id: 'toolu_2', is_error: true, content: [{ type: 'text', text: 'gone' }] },
      { type: 'tool_result', tool_use_id: 'toolu_3' },
    ];
    expect(read({ messages: [{ role: 'user', content }] }).request.conversation.messages).toEqual([
      { role: 'tool', content: 'fine', toolCallId: 'toolu_1' },
      { role: 'tool', content: 'Error: gone', toolCallId: 'toolu_2' },
      { role: 'tool', content: '', toolCallId: 'toolu_3' },
      { role: 'user', content: 'And now?' },
    ]);
  });

  test('thoughts and calls of the assistant stay its own', () => {
    const content = [
      { type: 'thinking', thinking: 'Hm.', signature: 'x' },
      { type: 'redacted_thinking', data: 'x' },
      { type: 'text', text: 'Let me see.' },
      { type: 'tool_use', id: 'toolu_1', name: 'f', input: { a: [1, 'ß'] } },
    ];
    expect(
      read({ messages: [...base.messages, { role: 'assistant', content }] }).request.conversation.messages,
    ).toEqual([
      { role: 'user', content: 'Hi' },
      {
        role: 'assistant',
        content: 'Let me see.',
        reasoning: 'Hm.',
        toolCalls: [{ id: 'toolu_1', name: 'f', arguments: '{"a": [1, "ß"]}' }],
      },
    ]);
  });

  test('tools are declared as the model knows them, with an object as the least schema', () => {
    const tools = [
      { name: 'f', description: 'F', input_schema: { properties: {} } },
      { type: 'custom', name: 'g', input_schema: {} },
    ];
    expect(read({ tools }).request.conversation.tools.map(({ declaration }) => declaration)).toEqual([
      { type: 'function', function: { name: 'f', description: 'F', parameters: { type: 'object', properties: {} } } },
      { type: 'function', function: { name: 'g', parameters: { type: 'object' } } },
    ]);
  });
});

describe('what the answer must be', () => {
  const tools = [{ name: 'f', input_schema: { type: 'object' } }];
  test.each([
    [{ tools }, { constraint: null, toolCalls: true, parallelToolCalls: true }],
    [
      { tools, tool_choice: { type: 'none' } },
      { constraint: null, toolCalls: false },
    ],
    [{ tools, tool_choice: { type: 'any' } }, { constraint: { kind: 'tools' } }],
    [
      { tools, tool_choice: { type: 'tool', name: 'f', disable_parallel_tool_use: true } },
      { constraint: { kind: 'tools', name: 'f' }, parallelToolCalls: false },
    ],
    [
      { output_config: { format: { type: 'json_schema', schema: { type: 'array' } } } },
      { constraint: { kind: 'schema', schema: { type: 'array' } } },
    ],
    [{ thinking: { type: 'disabled' } }, { conversation: { templateOptions: { thinking: false } } }],
    [{ thinking: { type: 'enabled', budget_tokens: 1024 } }, { conversation: { templateOptions: { thinking: true } } }],
    [
      { top_k: 40, top_p: 0.9, stop_sequences: ['.'] },
      { sampling: { topK: 40, topP: 0.9 }, stopStrings: ['.'] },
    ],
  ])('%j', (more, expected) => {
    expect(read(more).request).toMatchObject(expected);
  });
});

describe('an answer', () => {
  const answer = async (events: readonly ChatStreamEvent[], wantedTokens = 100) => {
    async function* indexed() {
      for (const event of events) yield [0, event] as const;
    }
    return collect(toEvents(indexed(), { id: 'msg_1', model: 'm' }, wantedTokens));
  };
  const run = async (script: string, more: object = {}) => {
    const { request, prompt, maxTokens } = read(more);
    return answer(await collect(chat(fakeEngine(tokenizer, script), tokenizer, request, undefined, prompt)), maxTokens);
  };

  test('of thoughts and text has a signed block for the thoughts', async () => {
    const timing = {
      queueMilliseconds: 0,
      promptMilliseconds: 0,
      decodeMilliseconds: 0,
      promptTokens: 5,
      decodedTokens: 4,
    };
    const counts = { promptTokens: 5, cachedTokens: 3, completionTokens: 4, reasoningTokens: 2 };
    const events = await answer([
      { type: 'started', promptTokens: 5, cachedTokens: 3 },
      { type: 'reasoning', text: 'Hm' },
      { type: 'reasoning', text: '.' },
      { type: 'text', text: 'Yes' },
      { type: 'finished', reason: 'stop', stopString: null, calls: [], ...counts, timing },
    ]);
    expect(events.map((event) => ('delta' in event && 'type' in event.delta ? event.delta.type : event.type))).toEqual([
      'message_start',
      'content_block_start',
      'ping',
      'thinking_delta',
      'thinking_delta',
      'signature_delta',
      'content_block_stop',
      'content_block_start',
      'text_delta',
      'content_block_stop',
      'message_delta',
      'message_stop',
    ]);
    async function* again() {
      yield* events;
    }
    const { content, usage } = await toMessage(again());
    expect(content).toEqual([
      { type: 'thinking', thinking: 'Hm.', signature: expect.stringMatching(/.{20}/) },
      { type: 'text', text: 'Yes' },
    ]);
    expect(usage).toMatchObject({ input_tokens: 2, cache_read_input_tokens: 3, output_tokens: 4 });
  });

  test('of nothing has no blocks', async () => {
    expect((await run('<|im_end|>')).map(({ type }) => type)).toEqual([
      'message_start',
      'message_delta',
      'message_stop',
    ]);
  });

  test('cut inside a call says max_tokens, and the call has what is an object of it', async () => {
    const tools = [{ name: 'f', input_schema: { type: 'object' } }];
    const script =
      '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"city": "A long name"}';
    const events = await run(script, { tools, max_tokens: 12 });
    async function* again() {
      yield* events;
    }
    expect(await toMessage(again())).toMatchObject({
      stop_reason: 'max_tokens',
      content: [{ type: 'tool_use', name: 'f', input: {} }],
    });
  });
});
