import { describe, expect, it } from 'vitest';
import { parseExact } from '../../src/chat/json.ts';
import { renderPrompt } from '../../src/chat/prompt.ts';
import type { Conversation, Message, Tool } from '../../src/chat/types.ts';
import { randomIntegers, randomText } from '../tokenizer/support.ts';
import { byteTokenizer, kimiSpecials, nanoTemplate, thinkingSpecials, tool } from './support.ts';

const user = (content: string): Message => ({ role: 'user', content });
const conversation = (
  messages: readonly Message[],
  tools: readonly Tool[] = [],
  templateOptions = {},
): Conversation => ({
  messages,
  tools,
  templateOptions,
});
const templated = byteTokenizer({ template: nanoTemplate });
const builtIn = byteTokenizer();
const idOf = (name: string) => builtIn.specials.get(name)!;

describe('the choice of renderer', () => {
  it("is the checkpoint's template where it keeps tool history", () => {
    expect(renderPrompt(conversation([user('Hi')]), templated).templateSource).toBe('checkpoint');
  });
  it("is Kimi K2's own format where there is no template", () => {
    const { templateSource, reason } = renderPrompt(conversation([user('Hi')]), builtIn);
    expect(templateSource).toBe('kimi-k2');
    expect(reason).toContain('no chat template');
  });
  it("is Kimi K2's own format where a Kimi template drops tool calls", () => {
    const template =
      "{%- for m in messages -%}<|im_user|>{{ m['role'] }}<|im_middle|>{{ m['content'] }}<|im_end|>{%- endfor -%}";
    const { templateSource, reason } = renderPrompt(conversation([user('Hi')]), byteTokenizer({ template }));
    expect(templateSource).toBe('kimi-k2');
    expect(reason).toContain('loses the history');
  });
  it('is the thinking format where the vocabulary has <think>', () => {
    const tokenizer = byteTokenizer({ specials: thinkingSpecials });
    expect(renderPrompt(conversation([user('Hi')]), tokenizer).templateSource).toBe('kimi-k2-thinking');
  });
  it('leaves templates of other families alone', () => {
    const template = '{% for m in messages %}{{ m.content }}|{% endfor %}';
    expect(renderPrompt(conversation([user('a'), user('b')]), byteTokenizer({ template })).text).toBe('a|b|');
  });
});

describe("the built-in renderer and the fixture's template", () => {
  const random = randomIntegers(7);
  const pick = <T>(...values: T[]): T => values[random(values.length)]!;
  const text = () =>
    pick(randomText(random), '', ' ', '\n', kimiSpecials[random(kimiSpecials.length)]!, '{"a": 1}', '<', '[');

  function randomMessage(): Message {
    const role = pick('user', 'assistant', 'system', 'tool');
    if (role === 'tool') return { role, content: text(), toolCallId: text(), ...(random(2) ? { name: text() } : {}) };
    if (role !== 'assistant') return { role, content: text(), ...(random(4) ? {} : { name: text() }) };
    const toolCalls = Array.from({ length: random(3) }, () => ({
      id: text(),
      name: pick('search', 'a.b:c'),
      arguments: text(),
    }));
    return { role, content: pick(null, text()), ...(toolCalls.length > 0 || random(2) ? { toolCalls } : {}) };
  }

  it('print the same text and ids for 500 random conversations', () => {
    for (let i = 0; i < 500; i++) {
      const messages = Array.from({ length: random(6) }, randomMessage);
      const tools = Array.from({ length: random(3) }, (_, n) =>
        tool(`t${n}`, { [text()]: { type: text() }, 10: {}, 9: {} }),
      );
      const one = conversation(messages, tools);
      const expected = renderPrompt(one, builtIn);
      const found = renderPrompt(one, templated);
      expect(found.text).toBe(expected.text);
      expect(found.ids).toEqual(expected.ids);
    }
  });
});

describe('text of people', () => {
  /** Everything a client may write, filled with `text`. */
  function everywhere(text: string): Conversation {
    const call = { id: text, name: text, arguments: text };
    return conversation(
      [
        { role: 'system', content: text, name: text },
        { role: 'user', content: text, name: text },
        { role: 'assistant', content: text, reasoning: text, toolCalls: [call, { ...call, id: 'other' }] },
        { role: 'tool', content: text, toolCallId: text, name: text },
        { role: 'tool', content: text, toolCallId: 'unheard of' },
        { role: 'user', content: text },
      ],
      [
        {
          name: text,
          declaration: { type: 'function', function: { name: text, parameters: { [text]: [text, { [text]: text }] } } },
        },
      ],
      { custom: text },
    );
  }
  const controls = (ids: readonly number[]) => ids.filter((id) => id >= 256);

  for (const [kind, tokenizer] of [
    ['the built-in renderer', builtIn],
    ['a template', templated],
    ['the thinking renderer', byteTokenizer({ specials: thinkingSpecials })],
  ] as const) {
    it(`never becomes a control token through ${kind}`, () => {
      const clean = controls(renderPrompt(everywhere('harmless'), tokenizer).ids);
      for (const name of tokenizer.specials.keys()) {
        for (const text of [name, `a${name}b`, name + name, `${name.slice(0, 4)}${name}`, ` ${name}\n`, `<${name}>`]) {
          const prompt = renderPrompt(everywhere(text), tokenizer);
          expect(controls(prompt.ids)).toEqual(clean);
          // The ids say exactly what the text says: no marker is left, nothing is lost.
          expect(tokenizer.decode(prompt.ids)).toBe(prompt.text);
        }
      }
    });
  }

  it('is tokenized in one piece with the text around it', () => {
    const seen: string[] = [];
    const spy = byteTokenizer();
    const spied = {
      ...spy,
      encode(text: string) {
        seen.push(text);
        return spy.encode(text);
      },
    };
    renderPrompt(conversation([user('before <|im_end|> after')]), spied);
    expect(seen).toContain('before <|im_end|> after');
  });

  it('cannot complete a name that the template or its neighbour begins', () => {
    const template = `{{ messages[0].content }}{{ messages[1].content | trim }}[{{ messages[2].content }}]<{{ messages[3].content }}`;
    const tokenizer = byteTokenizer({ template });
    const parts = ['x<|im_', ' end|> ', 'EOS', '|im_user|>'];
    const prompt = renderPrompt(conversation(parts.map(user)), tokenizer);
    expect(prompt.text).toBe('x<|im_end|>[EOS]<|im_user|>');
    expect(controls(prompt.ids)).toEqual([]);
  });

  it('stays text where the template prints JSON with escapes', () => {
    const template = '{{ messages[0].content | tojson(ensure_ascii=True) }}{{ tools | tojson(indent=2) }}';
    const prompt = renderPrompt(everywhere('é<|im_end|>'), byteTokenizer({ template }));
    expect(prompt.text.startsWith('"\\u00e9<|im_end|>"')).toBe(true);
    expect(prompt.text).not.toMatch(/\\ufd[de]/);
    expect(controls(prompt.ids)).toEqual([]);
  });

  it('does not disturb what templates compare', () => {
    const template = `{% if messages[0].role == 'user' and messages[0].content == 'go' and custom == 'user' %}yes{% endif %}`;
    const prompt = renderPrompt(conversation([user('go')], [], { custom: 'user' }), byteTokenizer({ template }));
    expect(prompt.text).toBe('yes');
  });

  it("may not replace the template's own variables", () => {
    const template = '{{ messages | length }}{{ add_generation_prompt }}{{ thinking }}';
    const options = { messages: [], add_generation_prompt: false, thinking: false };
    const prompt = renderPrompt(conversation([user('a')], [], options), byteTokenizer({ template }));
    expect(prompt.text.toLowerCase()).toBe('1truefalse');
  });
});

describe('tool declarations', () => {
  it('are sorted by code point, compact, with numbers as Python prints them', () => {
    const declaration = parseExact(
      '{"type":"function","function":{"name":"f","parameters":{"\u{1f600}":1.0,"\ufffd":1e5,"10":-0.0,"9":12345678901234567890,"b":[{"z":1,"a":"é"}]}}}',
    ) as Record<string, unknown>;
    const expected =
      '[{"function":{"name":"f","parameters":{"10":-0.0,"9":12345678901234567890,"b":[{"a":"é","z":1}],"\ufffd":100000.0,"\u{1f600}":1.0}},"type":"function"}]';
    for (const tokenizer of [builtIn, templated]) {
      expect(renderPrompt(conversation([user('Hi')], [{ name: 'f', declaration }]), tokenizer).text).toContain(
        expected,
      );
    }
  });

  it('come first, before the system message', () => {
    const { ids } = renderPrompt(conversation([user('Hi')], [tool('f')]), builtIn);
    expect(builtIn.decode(ids)).toMatch(
      /^<\|im_system\|>tool_declare<\|im_middle\|>\[.*\]<\|im_end\|><\|im_system\|>system/,
    );
    expect(ids.at(-1)).toBe(idOf('<|im_middle|>'));
  });
});
