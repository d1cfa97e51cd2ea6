import { describe, expect, it } from 'vitest';
import { createOutputParser, type OutputEnd, type ParserOptions } from '../../src/chat/parse.ts';
import type { ParsedCall } from '../../src/chat/tool-call.ts';
import type { ChatEvent, Tool } from '../../src/chat/types.ts';
import { randomIntegers, randomText } from '../tokenizer/support.ts';
import { byteTokenizer, joined, kimiSpecials, thinkingSpecials, tool } from './support.ts';

const thinking = byteTokenizer({ specials: thinkingSpecials });
const section = (...calls: string[]) => `<|tool_calls_section_begin|>${calls.join('')}<|tool_calls_section_end|>`;
const call = (id: string, args: string) =>
  `<|tool_call_begin|>${id}<|tool_call_argument_begin|>${args}<|tool_call_end|>`;
const weather = tool('get_weather', { city: { type: 'string' } }, ['city']);
const search = tool('search', { query: { type: 'string' }, limit: { type: 'number' } }, ['query']);

interface Parsed {
  readonly events: ChatEvent[];
  readonly calls: readonly ParsedCall[];
  readonly finish: string;
  readonly reasoningTokens: number;
}

function parse(output: string, options: Partial<ParserOptions> & { end?: OutputEnd } = {}): Parsed {
  const { end = 'stop', ...rest } = options;
  const tokenizer = rest.tokenizer ?? thinking;
  const parser = createOutputParser({ tokenizer, tools: [weather, search], historyCalls: 0, ...rest });
  const events = tokenizer.encode(output, { specials: true }).flatMap((id) => parser.push(id));
  events.push(...parser.end(end));
  const { calls, reasoningTokens } = parser;
  return { events: joined(events), calls, finish: parser.finishReason(end), reasoningTokens };
}
const text = (value: string): ChatEvent => ({ type: 'text', text: value });
const reasoning = (value: string): ChatEvent => ({ type: 'reasoning', text: value });
const toolCall = (name: string, n: number, args: string, index = n): ChatEvent[] => [
  { type: 'tool-call', index, id: `functions.${name}:${n}`, name },
  ...(args === '' ? [] : [{ type: 'tool-arguments', index, text: args } as const]),
];

describe('the output of a model', () => {
  it('is text', () => {
    expect(parse('Hi 世界 👩‍👩‍👧!')).toMatchObject({ events: [text('Hi 世界 👩‍👩‍👧!')], finish: 'stop', calls: [] });
    expect(parse(' \n').events).toEqual([text(' \n')]);
    expect(parse('').events).toEqual([]);
    expect(parse('x', { end: 'length' }).finish).toBe('length');
  });
  it('is reasoning, then text', () => {
    const parsed = parse('<think>Hm.\n</think>Yes');
    expect(parsed.events).toEqual([reasoning('Hm.\n'), text('Yes')]);
    expect(parsed.reasoningTokens).toBe('Hm.\n'.length + 2);
    expect(parse('Hm.</think>Yes', { reasoningOpen: true }).events).toEqual([reasoning('Hm.'), text('Yes')]);
    expect(parse('Hm', { reasoningOpen: true, end: 'length' })).toMatchObject({
      events: [reasoning('Hm')],
      finish: 'length',
    });
  });
  it('is text, then tool calls', () => {
    const args = '{"city": "北京"}';
    const parsed = parse(
      `Let me see.\n${section(call('functions.get_weather:0', args), call('functions.search:1', '{"query":"x"}'))}`,
    );
    expect(parsed.events).toEqual([
      text('Let me see.\n'),
      ...toolCall('get_weather', 0, args),
      ...toolCall('search', 1, '{"query":"x"}'),
    ]);
    expect(parsed.finish).toBe('tool_calls');
    expect(parsed.calls[0]).toEqual({
      id: 'functions.get_weather:0',
      name: 'get_weather',
      arguments: args,
      declared: true,
      complete: true,
    });
  });
  it('numbers its calls behind those of the conversation, whatever the model says', () => {
    const parsed = parse(section(call('functions.search:7', '{}'), call('functions.search:7', '{}')), {
      historyCalls: 3,
    });
    expect(parsed.calls.map(({ id }) => id)).toEqual(['functions.search:3', 'functions.search:4']);
    expect(parsed.events).toEqual([...toolCall('search', 3, '{}', 0), ...toolCall('search', 4, '{}', 1)]);
  });
  it('loses white space around ids and arguments, and before the calls', () => {
    const parsed = parse(` \n${section(call('\n functions.search:0 \n', '\n {"query": "a b"} \n'))}`);
    expect(parsed.events).toEqual(toolCall('search', 0, '{"query": "a b"}'));
  });
  it('ends with the section', () => {
    expect(parse(`a${section(call('search:0', '{}'))} and more`).events).toEqual([
      text('a'),
      ...toolCall('search', 0, '{}'),
    ]);
    expect(parse(`<|tool_calls_section_begin|> noise ${call('search:0', '{}')} noise`).events).toEqual(
      toolCall('search', 0, '{}'),
    );
  });
  it('keeps text that spells a marker as text', () => {
    const spelled = [...new TextEncoder().encode(`a${section(call('search:0', '{}'))}<think>`)];
    const parser = createOutputParser({ tokenizer: thinking, tools: [search], historyCalls: 0 });
    const events = [...spelled.flatMap((id) => parser.push(id)), ...parser.end('stop')];
    expect(joined(events)).toEqual([text(`a${section(call('search:0', '{}'))}<think>`)]);
  });
  it('is text alone where the vocabulary lacks the markers', () => {
    const tokenizer = byteTokenizer({
      specials: kimiSpecials.filter((name) => name !== '<|tool_call_argument_begin|>'),
    });
    const parsed = parse('a<|tool_calls_section_begin|>b', { tokenizer });
    expect(parsed.events).toEqual([text('ab')]);
  });
  it('shows no other control token', () => {
    expect(parse('a<|im_user|>b[PAD]c</think>d<|tool_call_end|>e<|tool_call_argument_begin|>f').events).toEqual([
      text('abcdef'),
    ]);
  });
  it('has no calls where none are allowed', () => {
    const parsed = parse(`a${section(call('search:0', '{}'))}`, { callsAllowed: false });
    expect(parsed).toMatchObject({ events: [text('a')], calls: [], finish: 'stop' });
  });
});

describe('markers out of place', () => {
  const whole = call('functions.search:0', '{"query":"x"}');
  const expected = toolCall('search', 0, '{"query":"x"}');
  const cases: Record<string, string> = {
    'no </think> before the section': `<think>r${section(whole)}`,
    'no section begin': `<think>r</think>${whole}`,
    'no section end': `<think>r</think><|tool_calls_section_begin|>${whole}`,
    'no call end before the section end': `<think>r</think>${section(whole.replace('<|tool_call_end|>', ''))}`,
    'no end at all': `<think>r</think><|tool_calls_section_begin|>${whole.replace('<|tool_call_end|>', '')}`,
    'a second section begin': `<think>r</think><|tool_calls_section_begin|>${section(whole)}`,
  };
  for (const [name, output] of Object.entries(cases)) {
    it(`${name}: the call is whole`, () => {
      expect(parse(output)).toMatchObject({ events: [reasoning('r'), ...expected], finish: 'tool_calls' });
    });
  }
  it('no call end before the next call: both are whole', () => {
    const second = call('functions.search:1', '{"query":"y"}');
    const parsed = parse(section(whole.replace('<|tool_call_end|>', ''), second));
    expect(parsed.events).toEqual([...expected, ...toolCall('search', 1, '{"query":"y"}')]);
  });
  it('a second section: its calls count on', () => {
    expect(parse(section(whole) + section(call('search:0', '{}'))).events).toEqual([
      ...expected,
      ...toolCall('search', 1, '{}'),
    ]);
  });
});

describe('an output cut short', () => {
  const begin = '<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>';
  it('inside the arguments finishes by length, with what there was', () => {
    const parsed = parse(`${begin}{"query": "a`, { end: 'length' });
    expect(parsed).toMatchObject({ events: toolCall('search', 0, '{"query": "a'), finish: 'length' });
    expect(parsed.calls[0]?.complete).toBe(false);
  });
  it('behind whole arguments has made its call', () => {
    expect(parse(`${begin}{"query": "a"}`, { end: 'length' })).toMatchObject({
      finish: 'tool_calls',
      calls: [{ complete: true }],
    });
  });
  it('inside an id has not made that call', () => {
    const cut = `<|tool_calls_section_begin|><|tool_call_begin|>functions.sea`;
    expect(parse(cut, { end: 'length' })).toMatchObject({ events: [], calls: [], finish: 'length' });
    expect(parse(cut)).toMatchObject({ events: [], calls: [], finish: 'stop' });
  });
  it('inside a character shows U+FFFD at the end only', () => {
    const parser = createOutputParser({ tokenizer: thinking, tools: [], historyCalls: 0 });
    const bytes = [...new TextEncoder().encode('é世')].slice(0, -1);
    const events = bytes.flatMap((id) => parser.push(id));
    expect(joined(events)).toEqual([text('é')]);
    expect(parser.end('length')).toEqual([text('\ufffd')]);
  });
});

describe('arguments', () => {
  const argumentsOf = (args: string, tools?: Tool[]) =>
    parse(section(call('functions.search:0', args)), tools === undefined ? {} : { tools }).calls[0]?.arguments;
  it('stream from their brace on', () => {
    const parser = createOutputParser({ tokenizer: thinking, tools: [search], historyCalls: 0 });
    const ids = thinking.encode(`${section(call('search:0', ' {"a": 1} '))}`, { specials: true });
    const pieces = ids.flatMap((id) => parser.push(id)).filter((event) => event.type === 'tool-arguments');
    expect(pieces.map((piece) => piece.text)).toEqual(['{', '"', 'a', '"', ':', ' 1', '}']);
  });
  it('that are empty become {}', () => {
    expect(argumentsOf('')).toBe('{}');
    expect(argumentsOf(' \n')).toBe('{}');
    expect(parse('<|tool_call_begin|>functions.search:0<|tool_call_end|>').calls[0]?.arguments).toBe('{}');
  });
  it('that are an object inside a string are unwrapped', () => {
    expect(argumentsOf(JSON.stringify('{"query": "a \\"b\\""}'))).toBe('{"query": "a \\"b\\""}');
    expect(argumentsOf('"just text"')).toBe('"just text"');
    expect(argumentsOf('"{broken"')).toBe('"{broken"');
  });
  it('stay verbatim otherwise, valid or not', () => {
    expect(argumentsOf('[1, 2]')).toBe('[1, 2]');
    expect(argumentsOf('{"a": }')).toBe('{"a": }');
    expect(argumentsOf('query=x')).toBe('query=x');
  });
  it('may be long', () => {
    const long = `{"query": "${'x'.repeat(50_000)}"}`;
    expect(argumentsOf(long)).toBe(long);
    expect(argumentsOf(JSON.stringify(long))).toBe(long);
  });
});

describe('ids', () => {
  const nameOf = (id: string, tools: Tool[], args = '{}') => {
    const [found] = parse(section(call(id, args)), { tools }).calls;
    return found === undefined ? undefined : `${found.name}${found.declared ? '' : ' (undeclared)'}`;
  };
  const exec = [tool('exec'), tool('x'), weather];
  const cases: [id: string, name: string][] = [
    ['functions.exec:0', 'exec'],
    ['exec:2', 'exec'],
    ['functions.exec', 'exec'],
    ['functionsexec5', 'exec'],
    ['functions_x_1', 'x'],
    ['functions.\nexec:5'.replace('\n', ''), 'exec'],
    ['functions.gone:3', 'gone (undeclared)'],
    ['other.gone:3', 'other.gone (undeclared)'],
    ['gone', 'gone (undeclared)'],
  ];
  for (const [id, name] of cases) it(`${id}: ${name}`, () => expect(nameOf(id, exec)).toBe(name));

  it('of declared names with dots, dashes and colons find them', () => {
    for (const name of ['a.b.c', 'a-b', 'ns:tool', 'v1.2', 'functions.x', 'get2']) {
      expect(nameOf(`functions.${name}:4`, [tool(name), tool('c'), tool('tool')])).toBe(name);
      expect(nameOf(`${name}:4`, [tool(name), tool('c')])).toBe(name);
    }
    expect(nameOf('functions.server.exec:0', exec)).toBe('exec');
  });
  for (const id of ['3', 'call_abc123', 'call00003', 'toolu_01x', 'functions:0', '']) {
    it(`without a name ('${id}') mean the only tool, or the one the arguments fit`, () => {
      expect(nameOf(id, [weather], '{"anything": 1}')).toBe('get_weather');
      expect(nameOf(id, [weather, search], '{"query": "x", "limit": 3}')).toBe('search');
      expect(nameOf(id, [weather, search], '{"limit": 3}')).toBe(`${id || 'unknown'} (undeclared)`);
    });
  }
  it('are announced before their arguments only when they hold a name', () => {
    const parsed = parse(section(call('3', '{"city": "x"}')), { tools: [weather, search] });
    expect(parsed.events).toEqual(toolCall('get_weather', 0, '{"city": "x"}'));
  });
});

describe('any cut of an output into tokens', () => {
  const random = randomIntegers(11);
  const pick = <T>(...values: T[]): T => values[random(values.length)]!;
  const json = () => JSON.stringify({ [randomText(random)]: randomText(random), n: random(100) });
  const output = () =>
    pick('', `<think>${randomText(random)}</think>`) +
    pick('', ' \n', randomText(random)) +
    pick(
      '',
      section(
        ...Array.from({ length: 1 + random(3) }, (_, n) =>
          call(`functions.search:${n}`, pick(json(), JSON.stringify(json()), '')),
        ),
      ),
    );

  /** Joins the ids of random runs of bytes into longer tokens. */
  function cut(ids: readonly number[]) {
    const pieces: number[][] = [];
    for (const id of ids) {
      const last = pieces.at(-1);
      if (id < 256 && last !== undefined && last[0]! < 256 && random(3) > 0) last.push(id);
      else pieces.push([id]);
    }
    return pieces;
  }

  it('gives the same events, joined', () => {
    for (let i = 0; i < 300; i++) {
      const said = output();
      const expected = parse(said);
      const pieces = cut(thinking.encode(said, { specials: true }));
      const long = {
        ...thinking,
        isSpecial: (id: number) => pieces[id]![0]! >= 256,
        streamDecoder: () => {
          const decoder = thinking.streamDecoder();
          return {
            push: (id: number) => pieces[id]!.map((byte) => decoder.push(byte)).join(''),
            end: () => decoder.end(),
          };
        },
        specials: new Map(
          [...thinking.specials].map(([name, id]) => [name, pieces.findIndex((piece) => piece[0] === id)]),
        ),
      };
      // A marker that occurs twice must have one id: later places repeat the first.
      const tokens = pieces.map((piece, place) =>
        piece[0]! >= 256 ? pieces.findIndex((other) => other[0] === piece[0]) : place,
      );
      const parser = createOutputParser({ tokenizer: long, tools: [weather, search], historyCalls: 0 });
      const events = [...tokens.flatMap((id) => parser.push(id)), ...parser.end('stop')];
      expect(joined(events)).toEqual(expected.events);
      expect(parser.calls).toEqual(expected.calls);
    }
  });
});
