import { describe, expect, it } from 'vitest';
import { StopStrings } from '../../src/chat/stop-strings.ts';
import { randomIntegers } from '../tokenizer/support.ts';

function run(stops: readonly string[], pieces: readonly string[]) {
  const search = new StopStrings(stops);
  let out = '';
  for (const piece of pieces) {
    const { text, stop } = search.push(piece);
    out += text;
    if (stop !== null) return { out, stop };
  }
  return { out: out + search.end(), stop: null };
}

describe('stop strings', () => {
  it('are found across pieces and removed', () => {
    expect(run(['END'], ['ab', 'cE', 'N', 'Dxyz'])).toEqual({ out: 'abc', stop: 'END' });
  });
  it('hold back no more than may become one', () => {
    const search = new StopStrings(['</s>']);
    expect(search.push('text <').text).toBe('text ');
    expect(search.push('/').text).toBe('');
    expect(search.push('x').text).toBe('</x');
    expect(search.push('<').text).toBe('');
    expect(search.end()).toBe('<');
  });
  it('never leak a part of one', () => {
    expect(run(['aab'], ['a', 'a', 'a', 'b'])).toEqual({ out: 'a', stop: 'aab' });
  });
  it('that are complete first win, of two that end together the longer', () => {
    expect(run(['abcd', 'b'], ['abcd'])).toEqual({ out: 'a', stop: 'b' });
    expect(run(['d', 'cd'], ['abcd'])).toEqual({ out: 'ab', stop: 'cd' });
  });
  it('do nothing when there are none', () => expect(run([], ['a', 'b'])).toEqual({ out: 'ab', stop: null }));
  it('give the same result for every cut of a text', () => {
    const random = randomIntegers(3);
    const word = (length: number) => Array.from({ length }, () => 'ab'[random(2)]).join('');
    for (let i = 0; i < 2000; i++) {
      const stops = Array.from({ length: random(3) }, () => word(1 + random(4)));
      const text = word(random(16));
      const whole = run(stops, [text]);
      expect(run(stops, [...text])).toEqual(whole);
      const at = random(text.length + 1);
      expect(run(stops, [text.slice(0, at), text.slice(at)])).toEqual(whole);
    }
  });
});
