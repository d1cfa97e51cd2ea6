import { describe, expect, it } from 'vitest';
import { countToolCalls, normalizeToolCalls } from '../../src/chat/tools.ts';
import type { Message } from '../../src/chat/types.ts';

const calls = (...pairs: [id: string, name: string][]): Message => ({
  role: 'assistant',
  content: null,
  toolCalls: pairs.map(([id, name]) => ({ id, name, arguments: '{}' })),
});
const result = (toolCallId?: string, name?: string): Message => ({
  role: 'tool',
  content: 'r',
  ...(toolCallId === undefined ? {} : { toolCallId }),
  ...(name === undefined ? {} : { name }),
});
const ids = (messages: readonly Message[]) =>
  normalizeToolCalls(messages).flatMap((m) => m.toolCalls?.map((call) => call.id) ?? `${m.toolCallId} ${m.name}`);

describe('ids of earlier tool calls', () => {
  it('count over the whole conversation', () => {
    const messages = [
      calls(['call_x', 'a'], ['toolu_y', 'b']),
      result('call_x'),
      result('toolu_y'),
      calls(['z', 'a']),
      result('z'),
    ];
    expect(ids(messages)).toEqual([
      'functions.a:0',
      'functions.b:1',
      'functions.a:0 a',
      'functions.b:1 b',
      'functions.a:2',
      'functions.a:2 a',
    ]);
    expect(countToolCalls(messages)).toBe(3);
  });
  it('are found by the old id in any order', () => {
    expect(ids([calls(['x', 'a'], ['y', 'b']), result('y'), result('x')]).slice(2)).toEqual([
      'functions.b:1 b',
      'functions.a:0 a',
    ]);
  });
  it('are found by order when the result names no known call', () => {
    expect(ids([calls(['x', 'a'], ['y', 'b']), result('?'), result()]).slice(2)).toEqual([
      'functions.a:0 a',
      'functions.b:1 b',
    ]);
    expect(ids([calls(['x', 'a'], ['y', 'b']), result('?'), result('x')]).slice(2)).toEqual([
      'functions.b:1 b',
      'functions.a:0 a',
    ]);
  });
  it('may repeat from turn to turn', () => {
    expect(ids([calls(['0', 'a']), result('0'), calls(['0', 'b']), result('0')])).toEqual([
      'functions.a:0',
      'functions.a:0 a',
      'functions.b:1',
      'functions.b:1 b',
    ]);
  });
  it('keep a name the client gave, and results without any call', () => {
    expect(ids([result('lost', 'n'), calls(['x', 'a']), result('x', 'mine')])).toEqual([
      'lost n',
      'functions.a:0',
      'functions.a:0 mine',
    ]);
  });
  it('are untouched when they are right already', () => {
    const messages = [calls(['functions.a:0', 'a']), result('functions.a:0', 'a')];
    expect(normalizeToolCalls(messages)).toEqual(messages);
  });
});
