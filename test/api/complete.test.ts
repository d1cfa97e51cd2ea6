import { describe, expect, it } from 'vitest';
import { type ChatFinished, type ChatRequest, chat } from '../../src/api/complete.ts';
import type { Message } from '../../src/chat/types.ts';
import { neutralSampling } from '../../src/sampling/defaults.ts';
import { byteTokenizer, thinkingSpecials, tool } from '../chat/support.ts';
import { collect, fakeEngine, textOf } from './support.ts';

const tokenizer = byteTokenizer({ specials: thinkingSpecials });
const idOf = (name: string) => tokenizer.specials.get(name)!;
const messages: readonly Message[] = [{ role: 'user', content: 'Hi' }];
const call = '<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>';
const calls = `<|tool_calls_section_begin|>${call}${call}<|tool_calls_section_end|><|im_end|>`;

function request(changes: Partial<ChatRequest> = {}): ChatRequest {
  return {
    conversation: { messages, tools: [tool('f')], templateOptions: {} },
    sampling: neutralSampling,
    maxTokens: null,
    stopStrings: [],
    stopTokens: [],
    ignoreEndOfTurn: false,
    toolCalls: true,
    parallelToolCalls: true,
    ...changes,
  };
}

async function run(script: string, changes: Partial<ChatRequest> = {}) {
  const engine = fakeEngine(tokenizer, script);
  const events = await collect(chat(engine, tokenizer, request(changes)));
  const finished = events.at(-1) as ChatFinished;
  return { engine, events, finished, text: textOf(events) };
}

describe('a chat', () => {
  it('starts, says its events and finishes', async () => {
    const { events, finished, engine } = await run('<think>r</think>Hello<|im_end|>');
    const promptTokens = engine.requests[0]!.prompt.length;
    expect(events[0]).toEqual({ type: 'started', promptTokens, cachedTokens: 3 });
    expect(events.map((event) => event.type).filter((type, i, all) => type !== all[i - 1])).toEqual([
      'started',
      'reasoning',
      'text',
      'finished',
    ]);
    // Eight characters, two markers and the end of turn... of which the reasoning has three.
    expect(finished).toMatchObject({
      reason: 'stop',
      stopString: null,
      completionTokens: 9,
      reasoningTokens: 3,
      cachedTokens: 3,
    });
    expect(finished.timing.decodeMilliseconds).toBe(3);
  });

  it('asks the engine for the prompt, the rest of the context and the ends of turn', async () => {
    const { engine } = await run('x', { stopTokens: [7] });
    const asked = engine.requests[0]!;
    expect(tokenizer.decode(asked.prompt)).toMatch(/<\|im_assistant\|>assistant<\|im_middle\|>$/);
    expect(asked.maxTokens).toBe(10_000 - asked.prompt.length);
    expect(asked.stopTokens).toEqual([...tokenizer.stopTokens, 7]);
    expect((await run('a<|im_end|>b', { ignoreEndOfTurn: true })).text).toBe('ab');
  });

  it('finishes by tool calls', async () => {
    const { finished } = await run(`a${calls}`);
    expect(finished.reason).toBe('tool_calls');
    expect(finished.calls.map(({ id }) => id)).toEqual(['functions.f:0', 'functions.f:1']);
  });

  it('numbers calls behind those of the conversation', async () => {
    const earlier: Message = { role: 'assistant', content: null, toolCalls: [{ id: 'x', name: 'f', arguments: '{}' }] };
    const { finished } = await run(calls, {
      conversation: { messages: [...messages, earlier], tools: [], templateOptions: {} },
    });
    expect(finished.calls.map(({ id }) => id)).toEqual(['functions.f:1', 'functions.f:2']);
  });

  it('ends with its first call where calls may not be parallel', async () => {
    const { finished, engine } = await run(`a${calls}`, { parallelToolCalls: false });
    expect(finished).toMatchObject({ reason: 'tool_calls', calls: [{ name: 'f', complete: true }] });
    expect(engine.abandoned).toBe(true);
  });

  it('forbids the tokens that open a call where none is wanted, and returns none', async () => {
    const sampling = {
      ...neutralSampling,
      logitBias: [
        [5, 1],
        [idOf('<|tool_call_begin|>'), 100],
      ] as const,
    };
    const { finished, engine, text } = await run(`a${calls}`, { toolCalls: false, sampling });
    expect(engine.requests[0]!.sampling.logitBias).toEqual([
      [5, 1],
      [idOf('<|tool_calls_section_begin|>'), Number.NEGATIVE_INFINITY],
      [idOf('<|tool_call_begin|>'), Number.NEGATIVE_INFINITY],
    ]);
    expect({ text, reason: finished.reason, calls: finished.calls }).toEqual({ text: 'a', reason: 'stop', calls: [] });
  });
});

describe('a stop string', () => {
  it('ends the text before it, and the generation', async () => {
    const { finished, text, engine } = await run('one STOP two three', { stopStrings: ['STOP'] });
    expect(text).toBe('one ');
    expect(finished).toMatchObject({ reason: 'stop', stopString: 'STOP' });
    expect(engine.delivered).toBe('one STOP'.length);
    expect(engine.abandoned).toBe(true);
    expect(finished.timing.decodedTokens).toBe('one STOP'.length);
  });
  it('is not searched in reasoning or tool arguments', async () => {
    const script =
      '<think>STOP</think>a<|tool_call_begin|>f:0<|tool_call_argument_begin|>{"a": "STOP"}<|tool_call_end|>';
    const { finished, text } = await run(script, { stopStrings: ['STOP'] });
    expect(text).toBe('a');
    expect(finished).toMatchObject({ reason: 'tool_calls', calls: [{ arguments: '{"a": "STOP"}' }] });
  });
  it('wins over the length', async () => {
    const { finished, text } = await run('abSTOP', { stopStrings: ['STOP'], maxTokens: 6 });
    expect(text).toBe('ab');
    expect(finished.reason).toBe('stop');
    expect((await run('abSTOP', { stopStrings: ['STOP'], maxTokens: 5 })).text).toBe('abSTO');
  });
  it('lets what looked like one go at the end, before a tool call too', async () => {
    expect((await run('a ST', { stopStrings: ['STOP'] })).text).toBe('a ST');
    const { events } = await run(`a ST${calls}`, { stopStrings: ['STOP'] });
    const types = events.map(({ type }) => type);
    expect(types.lastIndexOf('text')).toBeLessThan(types.indexOf('tool-call'));
    expect(textOf(events)).toBe('a ST');
  });
});

describe('a length', () => {
  it('that the prompt alone exceeds is refused with both numbers', async () => {
    const engine = fakeEngine(tokenizer, 'x', 20);
    const promise = collect(chat(engine, tokenizer, request()));
    await expect(promise).rejects.toMatchObject({ code: 'CONTEXT_LENGTH_EXCEEDED', status: 400 });
    await expect(promise).rejects.toThrow(/has \d\d\d tokens.*holds 20/);
    expect(engine.requests).toEqual([]);
  });
  it('that prompt and answer exceed together is refused with all numbers', async () => {
    const promise = collect(chat(fakeEngine(tokenizer, 'x', 1000), tokenizer, request({ maxTokens: 999 })));
    await expect(promise).rejects.toMatchObject({ code: 'MAX_TOKENS_EXCEEDS_CONTEXT', param: 'max_tokens' });
    await expect(promise).rejects.toThrow(/answer may have 999.*holds 1000/);
  });
  it('cuts the answer', async () => {
    expect((await run('abcdef', { maxTokens: 3 })).finished).toMatchObject({ reason: 'length', completionTokens: 3 });
  });
});

describe('leaving a chat', () => {
  it('by the signal throws its reason', async () => {
    const engine = fakeEngine(tokenizer, 'abcdef');
    const gone = new AbortController();
    const events = chat(engine, tokenizer, request(), gone.signal);
    await events.next();
    gone.abort(new Error('client left'));
    await expect(collect(events)).rejects.toThrow('client left');
    expect(engine.delivered).toBe(0);
  });
  it('by breaking the loop stops the engine', async () => {
    const engine = fakeEngine(tokenizer, 'abcdef');
    for await (const event of chat(engine, tokenizer, request())) if (event.type === 'text') break;
    expect(engine.delivered).toBe(1);
    expect(engine.abandoned).toBe(true);
  });
});
