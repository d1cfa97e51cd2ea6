import { describe, expect, it } from 'vitest';
import { toChatRequest, withExactTools } from '../../src/api/openai/to-request.ts';
import { compactJson, toTree } from '../../src/chat/json.ts';
import { PerigeeError } from '../../src/errors.ts';
import { neutralSampling } from '../../src/sampling/defaults.ts';
import { byteTokenizer } from '../chat/support.ts';

const tokenizer = byteTokenizer();
const messages = [{ role: 'user', content: 'Hi' }];
const f = { type: 'function', function: { name: 'f', parameters: { type: 'object' } } };
const read = (fields: object) => toChatRequest({ messages, ...fields }, { tokenizer });

/** The error's code, param and sentence. */
function refusal(body: unknown): { code: string; param: string | undefined; message: string } {
  try {
    toChatRequest(body, { tokenizer });
  } catch (error) {
    if (error instanceof PerigeeError) return { code: error.code, param: error.param, message: error.message };
    throw error;
  }
  throw new Error('the request was accepted');
}
const refused = (fields: object) => refusal({ messages, ...fields });

describe('a chat request', () => {
  it('may be as small as one message', () => {
    const { request, ...rest } = read({});
    expect(rest).toEqual({ model: undefined, stream: false, includeUsage: false, choices: 1, tokensAsIds: false });
    expect('topLogprobs' in request).toBe(false);
    expect(request).toMatchObject({
      conversation: { messages, tools: [], templateOptions: {} },
      sampling: { ...neutralSampling, seed: expect.any(Number) },
      maxTokens: null,
      stopStrings: [],
      stopTokens: [],
      ignoreEndOfTurn: false,
      toolCalls: true,
      parallelToolCalls: true,
    });
  });

  it('may say everything', () => {
    const { request, ...rest } = read({
      model: 'nano',
      stream: true,
      stream_options: { include_usage: true },
      max_tokens: 5,
      max_completion_tokens: 7,
      temperature: 0,
      top_p: 0.5,
      top_k: -1,
      min_p: 0.1,
      repetition_penalty: 1.1,
      presence_penalty: -2,
      frequency_penalty: 2,
      logit_bias: { 5: -100, 260: 1.5 },
      seed: -3,
      stop: ['a', 'b'],
      stop_token_ids: [9],
      ignore_eos: true,
      tools: [f],
      tool_choice: 'none',
      parallel_tool_calls: false,
      chat_template_kwargs: { thinking: false },
      user: 'u',
      n: 3,
      response_format: { type: 'text' },
      logprobs: true,
      top_logprobs: 5,
      min_tokens: 2,
      return_tokens_as_token_ids: true,
    });
    expect(rest).toEqual({ model: 'nano', stream: true, includeUsage: true, choices: 3, tokensAsIds: true });
    expect(request).toEqual({
      conversation: { messages, tools: [{ name: 'f', declaration: f }], templateOptions: { thinking: false } },
      sampling: {
        temperature: 0,
        topP: 0.5,
        topK: 0,
        minP: 0.1,
        repetitionPenalty: 1.1,
        presencePenalty: -2,
        frequencyPenalty: 2,
        logitBias: [
          [5, -100],
          [260, 1.5],
        ],
        seed: -3,
      },
      maxTokens: 7,
      stopStrings: ['a', 'b'],
      stopTokens: [9],
      ignoreEndOfTurn: true,
      minTokens: 2,
      topLogprobs: 5,
      constraint: null,
      toolCalls: false,
      parallelToolCalls: false,
    });
  });

  it.each([
    [{}, null],
    [{ response_format: { type: 'text' } }, null],
    [{ response_format: { type: 'json_object' } }, { kind: 'json' }],
    [
      { response_format: { type: 'json_schema', json_schema: { name: 'x', strict: true, schema: { type: 'null' } } } },
      { kind: 'schema', schema: { type: 'null' }, strict: true },
    ],
    [
      { response_format: { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'null' } } } },
      { kind: 'schema', schema: { type: 'null' }, strict: false },
    ],
    [{ tools: [f], tool_choice: 'auto' }, null],
    [{ tools: [f], tool_choice: 'required' }, { kind: 'tools' }],
    [
      { tools: [f], tool_choice: { type: 'function', function: { name: 'f' } } },
      { kind: 'tools', name: 'f' },
    ],
  ])('%j constrains the answer to %j', (fields, constraint) => {
    expect(read(fields).request.constraint).toEqual(constraint);
  });

  it('takes null as absent and ignores unknown fields', () => {
    const nothing = { temperature: null, stop: null, tools: null, tool_choice: null, n: null, stream_options: null };
    expect(read({ ...nothing, frobnicate: { deep: [1] } }).request.sampling.temperature).toBe(1);
    expect(read({ stream: true, stream_options: { include_usage: null } }).includeUsage).toBe(false);
  });

  it('takes null as absent inside formats and calls, where it is no data', () => {
    const call = { index: null, id: null, type: null, function: { name: 'f', arguments: null } };
    const data = { id: 'x', function: { name: 'f', arguments: { a: null } } };
    const { request } = read({
      messages: [...messages, { role: 'assistant', content: null, tool_calls: [call, data] }],
      response_format: { type: 'text', json_schema: null },
    });
    expect(request.conversation.messages.at(-1)!.toolCalls!.map(({ arguments: given }) => given)).toEqual([
      '{}',
      '{"a": null}',
    ]);
  });

  it('may ask for no log-probabilities in every way', () => {
    for (const fields of [{ top_logprobs: 0 }, { logprobs: false, top_logprobs: 0 }]) {
      expect(read(fields).request.topLogprobs).toBeUndefined();
    }
  });

  it("is sampled by the model's defaults where it leaves things open", () => {
    const defaults = { ...neutralSampling, temperature: 0.6, topP: 0.9 };
    const { sampling } = toChatRequest({ messages, top_p: 1 }, { tokenizer, defaults }).request;
    expect([sampling.temperature, sampling.topP]).toEqual([0.6, 1]);
  });

  it("has its messages in the template's terms", () => {
    const call = { id: 'x', type: 'function', function: { name: 'f', arguments: '{"a":1}' } };
    const { conversation } = read({
      messages: [
        {
          role: 'developer',
          content: [
            { type: 'text', text: 'a' },
            { type: 'text', text: 'b' },
          ],
        },
        { role: 'user', content: 'u', name: 'Ann' },
        { role: 'assistant', content: null, reasoning_content: 'r', tool_calls: [call] },
        { role: 'tool', tool_call_id: 'x', content: '' },
        { role: 'assistant', content: 'c', reasoning: 'vLLM', tool_calls: null },
        { role: 'assistant', tool_calls: [{ function: { name: 'g', arguments: { city: '北京', n: [1, 2] } } }] },
      ],
    }).request;
    expect(conversation.messages).toEqual([
      { role: 'system', content: 'ab' },
      { role: 'user', content: 'u', name: 'Ann' },
      { role: 'assistant', content: null, reasoning: 'r', toolCalls: [{ id: 'x', name: 'f', arguments: '{"a":1}' }] },
      { role: 'tool', content: '', toolCallId: 'x' },
      { role: 'assistant', content: 'c', reasoning: 'vLLM' },
      {
        role: 'assistant',
        content: null,
        toolCalls: [{ id: '', name: 'g', arguments: '{"city": "北京", "n": [1, 2]}' }],
      },
    ]);
  });

  it('turns thinking off in either dialect', () => {
    const options = (fields: object) => read(fields).request.conversation.templateOptions;
    expect(options({ thinking: { type: 'disabled' } })).toEqual({ thinking: false });
    expect(options({ chat_template_kwargs: { thinking: false } })).toEqual({ thinking: false });
    expect(options({ reasoning_effort: 'low' })).toEqual({ reasoning_effort: 'low' });
  });

  it('takes tool_choice auto and none without tools', () => {
    expect(read({ tool_choice: 'auto' }).request.toolCalls).toBe(true);
    expect(read({ tool_choice: 'none', tools: [] }).request.toolCalls).toBe(false);
  });

  it('keeps keys named like parts of a prototype as data', () => {
    const body = JSON.parse(
      '{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"__proto__":{"polluted":1},"constructor":{}}}}],"__proto__":{"stream":true}}',
    );
    const { stream, request } = toChatRequest(body, { tokenizer });
    expect(stream).toBe(false);
    expect(compactJson(toTree(request.conversation.tools[0]?.declaration, true))).toContain(
      '"__proto__":{"polluted":1}',
    );
    expect(({} as { polluted?: number }).polluted).toBeUndefined();
  });
});

describe('a malformed request is refused by the name of its field', () => {
  const bodies: [body: unknown, param: string | undefined][] = [
    [[], undefined],
    ['x', undefined],
    [null, undefined],
    [{}, 'messages'],
    [{ messages: null }, 'messages'],
    [{ messages: 'string' }, 'messages'],
    [{ messages: [] }, 'messages'],
    [{ messages: [123] }, 'messages.0'],
    [{ messages: [{}] }, 'messages.0.role'],
    [{ messages: [{ role: 123, content: 'x' }] }, 'messages.0.role'],
    [{ messages: [{ role: 'usr', content: 'x' }] }, 'messages.0.role'],
    [{ messages: [{ role: 'user', content: 123 }] }, 'messages.0.content'],
    [{ messages: [{ role: 'user' }] }, 'messages.0.content'],
    [{ messages: [{ role: 'user', content: ['x'] }] }, 'messages.0.content.0'],
    [{ messages: [{ role: 'user', content: [{ type: 'text' }] }] }, 'messages.0.content.0.text'],
    [{ messages: [{ role: 'user', content: 'x', tool_calls: [] }] }, 'messages.0.tool_calls'],
    [{ messages: [...messages, { role: 'assistant', tool_calls: [{}] }] }, 'messages.1.tool_calls.0.function'],
  ];
  for (const [body, param] of bodies) {
    it(JSON.stringify(body), () => expect(refusal(body)).toMatchObject({ code: 'FIELD_INVALID', param }));
  }

  const fields: [fields: object, param: string][] = [
    [{ n: 1_000_000 }, 'n'],
    [{ n: 0 }, 'n'],
    [{ n: -1 }, 'n'],
    [{ n: 1.5 }, 'n'],
    [{ max_tokens: -1 }, 'max_tokens'],
    [{ max_tokens: 0 }, 'max_tokens'],
    [{ max_tokens: 2 ** 53 }, 'max_tokens'],
    [{ max_completion_tokens: 1.5 }, 'max_completion_tokens'],
    [{ top_k: -5 }, 'top_k'],
    [{ seed: 1e30 }, 'seed'],
    [{ temperature: '0.5' }, 'temperature'],
    [{ temperature: 1e308 }, 'temperature'],
    [{ temperature: -0.1 }, 'temperature'],
    [{ top_p: 1.1 }, 'top_p'],
    [{ repetition_penalty: 0 }, 'repetition_penalty'],
    [{ logit_bias: { 999999: 1 } }, 'logit_bias.999999'],
    [{ logit_bias: { x: 1 } }, 'logit_bias.x'],
    [{ logit_bias: { 1: 1000 } }, 'logit_bias.1'],
    [{ logit_bias: [] }, 'logit_bias'],
    [{ stop: '' }, 'stop'],
    [{ stop: ['a', ''] }, 'stop.1'],
    [{ stop_token_ids: [270] }, 'stop_token_ids.0'],
    [{ stream: 'yes' }, 'stream'],
    [{ stream_options: { include_usage: true } }, 'stream_options'],
    [{ top_logprobs: 3 }, 'top_logprobs'],
    [{ logprobs: true, top_logprobs: 21 }, 'top_logprobs'],
    [{ logprobs: true, top_logprobs: -1 }, 'top_logprobs'],
    [{ tools: [{ type: 'function' }] }, 'tools.0.function'],
    [{ tools: [{ type: 'hiccup', function: { name: 'f' } }] }, 'tools.0.type'],
    [{ tool_choice: 'bogus' }, 'tool_choice'],
    [{ tools: [f], tool_choice: { type: 'allowed_tools', allowed_tools: {} } }, 'tool_choice.function'],
    [{ tool_choice: 'required' }, 'tool_choice'],
    [{ tool_choice: 'required', tools: [] }, 'tool_choice'],
    [{ tools: [f], tool_choice: { type: 'function', function: { name: 'g' } } }, 'tool_choice.function.name'],
    [{ response_format: { type: 'poem' } }, 'response_format.type'],
    [{ response_format: { type: 'json_schema' } }, 'response_format.json_schema'],
    [{ response_format: { type: 'json_schema', json_schema: { name: 'x' } } }, 'response_format.json_schema.schema'],
    [{ response_format: { type: 'json_schema', json_schema: { schema: 3 } } }, 'response_format.json_schema.schema'],
  ];
  for (const [changes, param] of fields) {
    it(JSON.stringify(changes), () => expect(refused(changes)).toMatchObject({ code: 'FIELD_INVALID', param }));
  }

  it('with a sentence that says what was expected and what was found', () => {
    expect(refused({ temperature: '0.5' }).message).toBe(`'temperature' must be a number from 0 to 2; it is "0.5".`);
    expect(refusal({}).message).toBe("'messages' must be a list of at least one message; it is missing.");
    expect(refused({ tool_choice: { type: 'function' } }).message).toBe(
      `'tool_choice.function' must be an object like {"name": "..."}; it is missing.`,
    );
    expect(refused({ temperature: 'x'.repeat(10_000) }).message.length).toBeLessThan(150);
  });
});

describe('what is not supported is refused, not ignored', () => {
  const cases: [fields: object, param: string][] = [
    [{ echo: true }, 'echo'],
    [{ prompt_logprobs: 1 }, 'prompt_logprobs'],
    [{ response_format: { type: 'structural_tag' } }, 'response_format'],
    [{ structured_outputs: { regex: '.*' } }, 'structured_outputs'],
    [
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] },
      'messages.0.content.0.type',
    ],
    [{ functions: [{ name: 'f' }] }, 'functions'],
    [{ chat_template: '{{ messages }}' }, 'chat_template'],
    [{ stream: true, stream_options: { continuous_usage_stats: true } }, 'stream_options.continuous_usage_stats'],
  ];
  for (const [changes, param] of cases) {
    it(JSON.stringify(changes), () => expect(refused(changes)).toMatchObject({ code: 'FIELD_UNSUPPORTED', param }));
  }
});

describe('numbers in tools', () => {
  const body = (value: string) =>
    `{"messages":[{"role":"user","content":"1.0"}],"temperature":1.0,"tools":[{"type":"function","function":{"name":"f","parameters":{"default":${value}}}}]}`;
  const printed = (text: string) => {
    const { conversation } = toChatRequest(withExactTools(JSON.parse(text), text), { tokenizer }).request;
    return /"default":([^}]*)/.exec(compactJson(toTree(conversation.tools[0]?.declaration)))?.[1];
  };
  // Right column: Python's json.dumps(json.loads(left)).
  for (const [source, python] of [
    ['1.0', '1.0'],
    ['-3', '-3'],
    ['0.5', '0.5'],
    ['1e3', '1000.0'],
    ['1E16', '1e+16'],
    ['0.00001', '1e-05'],
    ['0.0001', '0.0001'],
    ['12345678901234567890', '12345678901234567890'],
    ['100', '100'],
    ['2.50', '2.5'],
  ] as const) {
    it(`${source} prints as ${python}`, () => expect(printed(body(source))).toBe(python));
  }
});
