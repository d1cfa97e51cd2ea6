/** Hostile vocabularies: the file opens, and what is wrong with its tokens is one coded error. */
import { expect, it } from 'vitest';
import type { GgufModel, GgufValue } from '../../src/gguf/types.ts';
import { vocabularyEntries } from '../../src/model/synthetic-vocabulary.ts';
import { tokenizerFromGguf } from '../../src/tokenizer/gguf.ts';
import { errorOf } from './raw.ts';

const size = 400;

function modelWith(change: Readonly<Record<string, GgufValue>>): GgufModel {
  const metadata = new Map<string, GgufValue>(vocabularyEntries(size).map((entry) => [entry.key, entry.value]));
  for (const [key, value] of Object.entries(change)) metadata.set(`tokenizer.ggml.${key}`, value);
  return { files: [{ path: 'model.gguf', bytes: 0 }], version: 3, metadata, tensors: new Map() };
}

function tokensWith(id: number, token: string): readonly string[] {
  const tokens = modelWith({}).metadata.get('tokenizer.ggml.tokens') as readonly string[];
  return tokens.with(id, token);
}

const typesWith = (id: number, type: number) =>
  (modelWith({}).metadata.get('tokenizer.ggml.token_type') as readonly number[]).with(id, type);

it('opens when nothing is wrong', () => expect(tokenizerFromGguf(modelWith({})).vocabularySize).toBe(size));

it.each([
  ['a token of 2^20 bytes', { tokens: tokensWith(300, 'a'.repeat(2 ** 20)) }],
  ['an empty token', { tokens: tokensWith(300, '') }],
  ['the same token twice', { tokens: tokensWith(300, tokensWith(0, '')[301] ?? '') }],
  ['a byte token with an impossible value', { tokens: tokensWith(300, '<0x-1>'), token_type: typesWith(300, 6) }],
  ['a token type that does not exist', { token_type: typesWith(300, -7) }],
  ['fewer types than tokens', { token_type: [1, 1, 1] }],
  ['types that are words', { token_type: ['normal'] }],
  ['tokens that are numbers', { tokens: [1, 2, 3], token_type: [1, 1, 1] }],
  ['a beginning token beyond the vocabulary', { bos_token_id: size }],
  ['an end token of 2^32 - 1', { eos_token_id: 2 ** 32 - 1 }],
  ['a negative padding token', { padding_token_id: -1 }],
])('refuses %s', async (_, change) => {
  const error = await errorOf(() => tokenizerFromGguf(modelWith(change)));
  expect([error.code, error.exitCode]).toEqual(['VOCABULARY_BAD', 2]);
});

it('does not depend on merges, so absurd ones do no harm', () => {
  const tokenizer = tokenizerFromGguf(modelWith({ merges: ['no such', 'x', '', ' '] }));
  expect(tokenizer.decode(tokenizer.encode('Hello'))).toBe('Hello');
});
