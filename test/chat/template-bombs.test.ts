/** Hostile and broken templates (a model file is somebody else's program): each must end here, in a coded error. */
import { describe, expect, it } from 'vitest';
import { compileTemplate } from '../../src/chat/jinja.ts';
import { toTree } from '../../src/chat/json.ts';
import { renderPrompt } from '../../src/chat/prompt.ts';
import { PerigeeError } from '../../src/errors.ts';
import { byteTokenizer } from './support.ts';

const variables = { messages: toTree([{ role: 'user', content: 'hi there' }]), tools: null };
const outcome = (template: string): string => {
  try {
    return compileTemplate(template)(variables);
  } catch (error) {
    return error instanceof PerigeeError ? error.code : `not ours: ${error}`;
  }
};

describe('a template that would not end', () => {
  const loop = (depth: number, inner: string) =>
    '{% for a in range(10000) %}'.repeat(depth) + inner + '{% endfor %}'.repeat(depth);
  const grow = (set: string, start: string) =>
    `{% set ns = namespace(x=${start}) %}{% for i in range(200) %}{% set ns.x = ${set} %}{% endfor %}{{ ns.x }}`;
  const bombs: Record<string, string> = {
    'nested loops': loop(4, ''),
    'a huge range': '{% for a in range(1000000000) %}{% endfor %}',
    'a range without end': '{% for a in range(1, 2, 0) %}{% endfor %}',
    'a doubling text': grow('ns.x ~ ns.x', "'aaaaaaaa'"),
    'a doubling list': grow('ns.x + ns.x', '[1, 2, 3]'),
    'a replacing text': grow("ns.x.replace('a', 'aaaaaaaa')", "'a'"),
    'output without end': loop(2, 'aaaaaaaaaaaaaaaa'.repeat(64)),
    'kept lists': `{% set ns = namespace(x=[]) %}${loop(2, '{% set ns.x = ns.x + [range(1000)] %}')}`,
    'slow searches': `{% set big = range(9000) %}${loop(2, '{% if -1 in big %}{% endif %}')}`,
  };
  for (const [name, template] of Object.entries(bombs)) {
    it(`${name}: is stopped`, () => expect(outcome(template)).toBe('TEMPLATE_UNBOUNDED'));
  }
  it('recursion: is stopped by the stack', () => {
    expect(outcome('{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}')).toBe('TEMPLATE_FAILED');
  });
  it('an indent of a billion: is refused', () => {
    expect(outcome("{{ 'a\nb' | indent(1000000000) }}")).toMatch(/TEMPLATE_(FAILED|UNBOUNDED)/);
  });
  it('a gigabyte of text: is refused', () => {
    expect(outcome("{{ 'a' * 1000000000 }}")).toMatch(/TEMPLATE_(FAILED|UNBOUNDED)/);
  });
  it('is not tried again for the next request', () => {
    const tokenizer = byteTokenizer({ template: bombs['nested loops']! });
    const render = () => renderPrompt({ messages: [], tools: [], templateOptions: {} }, tokenizer);
    expect(render).toThrow('was stopped');
    const [first, second] = [1, 2].map(() => {
      try {
        return render();
      } catch (error) {
        return error;
      }
    });
    expect(second).toBe(first);
  });
});

describe('a template that reaches for JavaScript', () => {
  for (const template of [
    "{{ ''.constructor }}",
    "{{ messages.constructor }}{{ messages['__proto__'] }}{{ messages[0]['constructor'] }}",
    '{{ range.constructor }}',
  ]) {
    it(`finds nothing: ${template}`, () => expect(outcome(template)).toMatch(/^(undefined|TEMPLATE_FAILED)?$/));
  }
  it('cannot call a constructor', () => {
    expect(outcome("{{ ''.constructor.constructor('return process')().exit() }}")).toBe('TEMPLATE_FAILED');
    expect(outcome("{{ range.constructor('return process')() }}")).toBe('TEMPLATE_FAILED');
  });
});

describe('a broken template', () => {
  for (const template of [
    '{% for x in %}{{',
    '{{ (',
    '{% endif %}',
    '{% nonsense %}',
    `{{ ${'('.repeat(100_000)}1 }}`,
    'x'.repeat(2_000_000),
  ]) {
    it(`is named as such: ${template.slice(0, 20)}`, () => expect(outcome(template)).toBe('TEMPLATE_INVALID'));
  }
  it('says what the template itself refused', () => {
    const render = () => compileTemplate("{{ raise_exception('roles must alternate') }}")(variables);
    expect(render).toThrow('does not accept this conversation: roles must alternate');
  });
});

describe("Hugging Face's environment", () => {
  const render = (template: string, extra = {}) => compileTemplate(template)({ ...variables, ...extra });
  it('trims blocks and has loop controls', () => {
    expect(render('a\n  {% if true %}\nb\n  {% endif %}\nc\n')).toBe('a\nb\nc');
    expect(
      render(
        '{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}',
      ),
    ).toBe('023');
  });
  it('prints JSON as Python does', () => {
    const value = toTree({ b: ['é', '<&>', null, true], a: { x: 1.5 } });
    expect(render('{{ value | tojson }}', { value })).toBe('{"b": ["é", "<&>", null, true], "a": {"x": 1.5}}');
    expect(render("{{ value | tojson(separators=(',', ':')) }}", { value })).toBe(
      '{"b":["é","<&>",null,true],"a":{"x":1.5}}',
    );
  });
  it('has the date', () => expect(render("{{ strftime_now('%Y') }}")).toMatch(/^\d{4}$/));
});
