import { afterAll, describe, expect, it } from 'vitest';
import type { CallConstraint } from '../../src/constrain/types.ts';
import { begin, possible, startConstraints, tokenizer } from './support.ts';

const constraints = startConstraints();
afterAll(() => constraints.close());

const weather = {
  name: 'get_weather',
  strict: true,
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
};
const map = { name: 'get_weather_map', strict: true };
const stop = { name: 'stop', strict: true, parameters: { type: 'object', properties: {} } };
const tools = [weather, map, stop];
const auto: CallConstraint = { tools, required: false, parallel: true, firstIndex: 0 };
const spec = (calls: Partial<CallConstraint> = {}) => ({
  answer: null,
  calls: { ...auto, ...calls },
  reasoningOpen: false,
});

const section = (...calls: string[]) => `<|tool_calls_section_begin|>${calls.join('')}<|tool_calls_section_end|>`;
const call = (id: string, json: string) =>
  `<|tool_call_begin|>${id}<|tool_call_argument_begin|>${json}<|tool_call_end|>`;
const good = call('functions.get_weather:0', '{"city": "Ulm"}');
const ends = { possible: true, ended: true };

describe('with tools', () => {
  it.each([
    ['text alone', 'It rains in Ulm.'],
    ['text and a call', `Let me see.${section(good)}`],
    [
      'several calls, numbered',
      section(good, call('functions.stop:1', '{}'), call('functions.get_weather_map:2', '{}')),
    ],
    ['a name that begins with another', section(call('functions.get_weather_map:0', '{"any": [1]}'))],
  ])('lets %s be an answer', async (_, text) => {
    expect(await possible(constraints, spec(), text)).toEqual(ends);
  });

  it.each([
    ['an undeclared name', section(call('functions.get_news:0', '{}'))],
    ['another index', section(call('functions.get_weather:1', '{"city": "Ulm"}'))],
    ['the same index twice', section(good, good)],
    ['arguments against the schema', section(call('functions.get_weather:0', '{"town": "Ulm"}'))],
    ['missing arguments', section(call('functions.get_weather:0', '{}'))],
    ['arguments that are no object', section(call('functions.get_weather_map:0', '[1]'))],
    ['a call outside a section', good],
    ['an empty section', section()],
    ['text in a section', '<|tool_calls_section_begin|>Hello'],
    ['text behind a section', `${section(good)} Done`],
    ['a marker inside arguments', `<|tool_calls_section_begin|>${call('functions.stop:0', '{<|tool_call_end|>')}`],
  ])('does not let %s be written', async (_, text) => {
    expect((await possible(constraints, spec(), text)).possible).toBe(false);
  });

  it('counts on from the calls of the conversation', async () => {
    const text = section(call('functions.stop:7', '{}'));
    expect(await possible(constraints, spec({ firstIndex: 7 }), text)).toEqual(ends);
  });

  it('may not end inside a call', async () => {
    const text = '<|tool_calls_section_begin|><|tool_call_begin|>functions.stop:0<|tool_call_argument_begin|>{}';
    expect(await possible(constraints, spec(), text)).toEqual({ possible: true, ended: false });
  });

  it('has only calls where they are required', async () => {
    expect((await possible(constraints, spec({ required: true }), 'Hello')).possible).toBe(false);
    expect(await possible(constraints, spec({ required: true }), '')).toEqual({ possible: true, ended: false });
    expect(await possible(constraints, spec({ required: true }), section(good))).toEqual(ends);
  });

  it('has one call where they are not parallel', async () => {
    const two = section(good, call('functions.stop:1', '{}'));
    expect((await possible(constraints, spec({ parallel: false }), two)).possible).toBe(false);
    expect(await possible(constraints, spec({ parallel: false }), section(good))).toEqual(ends);
  });

  it('has JSON or calls where both are asked for', async () => {
    const both = { ...spec(), answer: { schema: { type: 'object' }, strict: true } };
    expect(await possible(constraints, both, '{"a":1}')).toEqual(ends);
    expect(await possible(constraints, both, section(good))).toEqual(ends);
    expect((await possible(constraints, both, `{"a"${section(good)}`)).possible).toBe(false);
  });

  it('refuses a schema before the answer begins, though only a call would need it', async () => {
    const bad = spec({ tools: [weather, { name: 'odd', strict: true, parameters: { not: {} } }] });
    await expect(begin(constraints, bad)).rejects.toMatchObject({ code: 'SCHEMA_UNSUPPORTED' });
  });
});

describe('the answer', () => {
  it('may be anything while the model reasons', async () => {
    const thinkEnd = tokenizer.specials.get('</think>');
    const reasoning = { answer: { schema: { type: 'integer' }, strict: true }, calls: null, reasoningOpen: true };
    expect((await possible(constraints, reasoning, 'Hmm, seven?')).possible).toBe(true);
    if (thinkEnd === undefined) return;
    expect(await possible(constraints, reasoning, 'Hmm</think>7')).toEqual(ends);
    expect((await possible(constraints, reasoning, 'Hmm</think>seven')).possible).toBe(false);
  });
});
