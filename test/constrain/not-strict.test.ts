/** Schemas that need not hold word for word: what a grammar can say of them is kept, the rest is named. */
import { afterAll, describe, expect, it } from 'vitest';
import { createConstraints } from '../../src/constrain/constraints.ts';
import type { ConstraintSpec, JsonSchema, ToolConstraint } from '../../src/constrain/types.ts';
import { partlyEnforced as cases, slow } from './schemas.ts';
import { answering, begin, possible, startConstraints, vocabularyPath } from './support.ts';

const constraints = startConstraints();
afterAll(() => constraints.close());

const calling = (tools: readonly ToolConstraint[], required = false): ConstraintSpec => ({
  answer: null,
  calls: { tools, required, parallel: true, firstIndex: 0 },
  reasoningOpen: false,
});
const tool = (parameters: JsonSchema, strict = false): ToolConstraint => ({
  name: 'note',
  strict,
  parameters,
  param: 'tools.2.function.parameters',
});
const callOf = (json: string) =>
  `<|tool_calls_section_begin|><|tool_call_begin|>functions.note:0<|tool_call_argument_begin|>${json}` +
  '<|tool_call_end|><|tool_calls_section_end|>';
const ends = { possible: true, ended: true };

describe('a tool that is not strict, under auto', () => {
  it.each(cases)('%j: takes %s, not %s, without %j', async (schema, allowed, ruledOut, keywords) => {
    const spec = calling([tool(schema)]);
    expect(await possible(constraints, spec, callOf(allowed))).toEqual(ends);
    if (ruledOut !== null) expect((await possible(constraints, spec, callOf(ruledOut))).possible).toBe(false);
    const { run, close } = await begin(constraints, spec);
    expect(run.unenforced).toEqual([{ tool: 'note', keywords }]);
    close();
  });

  it.each(cases)('%j: is refused by keyword when it is strict', async (schema, _allowed, _ruledOut, [keyword]) => {
    const refused = begin(constraints, calling([tool(schema, true)]));
    await expect(refused).rejects.toMatchObject({
      code: 'SCHEMA_UNSUPPORTED',
      status: 400,
      param: 'tools.2.function.parameters',
    });
    await expect(refused).rejects.toThrow(`'${keyword}'`);
  });

  it('holds what can be held next to it', async () => {
    const schema = { properties: { a: { type: 'string', maxLength: 2 }, b: { not: {} } }, required: ['a'] };
    expect(await possible(constraints, calling([tool(schema)]), callOf('{"a":"xy"}'))).toEqual(ends);
    for (const json of ['{"a":"xyz"}', '{}', '{"c":1}']) {
      expect((await possible(constraints, calling([tool(schema)]), callOf(json))).possible).toBe(false);
    }
  });

  it('takes tuples as drafts before 2020 write them', async () => {
    const pair = { type: 'array', items: [{ type: 'integer' }, { type: 'null' }], additionalItems: false };
    const spec = calling([tool({ properties: { pair } }, true)]);
    expect(await possible(constraints, spec, callOf('{"pair":[1,null]}'))).toEqual(ends);
    expect((await possible(constraints, spec, callOf('{"pair":[1,null,1]}'))).possible).toBe(false);
  });

  it.each<[string, object, string]>([
    ['no type', { properties: { a: { type: 'hiccup' } } }, 'SCHEMA_INVALID'],
    ['a broken pattern', { properties: { a: { type: 'string', pattern: '(' } } }, 'SCHEMA_INVALID'],
    ['a broken pattern of names', { patternProperties: { '(': {} } }, 'SCHEMA_INVALID'],
    ['a keyword of another form', { propertyNames: 3 }, 'SCHEMA_INVALID'],
    ['a reference to nothing', { properties: { a: { $ref: '#/$defs/a' } } }, 'SCHEMA_INVALID'],
    ['a reference that cannot be read', { properties: { a: { $ref: '#/%' } } }, 'SCHEMA_INVALID'],
    ['a reference to elsewhere', { properties: { a: { $ref: 'https://example.com/a' } } }, 'SCHEMA_UNSUPPORTED'],
  ])('is refused all the same for %s', async (_, schema, code) => {
    await expect(begin(constraints, calling([tool(schema)]))).rejects.toMatchObject({
      code,
      status: 400,
      param: 'tools.2.function.parameters',
    });
  });

  it('may be called with any object when its schema is too large', async () => {
    const properties = Object.fromEntries(Array.from({ length: 20_000 }, (_, i) => [`p${i}`, { type: 'string' }]));
    const walk = await begin(constraints, calling([tool({ properties })]));
    expect(walk.run.unenforced).toEqual([{ tool: 'note', keywords: null }]);
    walk.close();
    expect(await possible(constraints, calling([tool({ properties })]), callOf('{"any":[1]}'))).toEqual(ends);
    await expect(begin(constraints, calling([tool({ properties }, true)]))).rejects.toMatchObject({
      code: 'SCHEMA_TOO_COSTLY',
      param: 'tools.2.function.parameters',
    });
  });
});

describe('a tool whose grammar takes too long', () => {
  const parameters = { type: 'object', properties: { a: slow } };

  it('may be called with any object, at once the next time; strict ones are refused before the answer', async () => {
    const impatient = createConstraints({ tokenizer: vocabularyPath, answerMilliseconds: 1500 });
    try {
      const spec = calling([tool(parameters)]);
      expect(await possible(impatient, spec, callOf('{"b":[1]}'))).toEqual(ends);
      const walk = await begin(impatient, spec);
      expect(walk.run.unenforced).toEqual([{ tool: 'note', keywords: null }]);
      walk.close();
      expect(await possible(impatient, spec, `Text.${callOf('{"b":[1]}')}`)).toEqual(ends);
      await expect(begin(impatient, calling([tool(parameters, true)]))).rejects.toMatchObject({
        code: 'SCHEMA_TOO_COSTLY',
        status: 400,
        param: 'tools.2.function.parameters',
      });
    } finally {
      await impatient.close();
    }
  });
});

describe('a schema of the text', () => {
  const schema = { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'], propertyNames: {} };

  it('that is not strict is held to what can be held', async () => {
    const walk = await begin(constraints, answering(schema, false));
    expect(walk.run.unenforced).toEqual([{ tool: null, keywords: ['propertyNames'] }]);
    walk.close();
    expect(await possible(constraints, answering(schema, false), '{"a":1}')).toEqual(ends);
    expect((await possible(constraints, answering(schema, false), '{}')).possible).toBe(false);
  });

  it('that is strict is refused with the field it came in', async () => {
    const param = 'response_format.json_schema.schema';
    const spec = { ...answering(schema), answer: { schema, strict: true, param } };
    await expect(begin(constraints, spec)).rejects.toMatchObject({ code: 'SCHEMA_UNSUPPORTED', status: 400, param });
  });
});
