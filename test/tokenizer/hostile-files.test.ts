import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { GgufScalar, GgufValue } from '../../src/gguf/types.ts';
import { tokenizerFromFolder } from '../../src/tokenizer/folder.ts';
import { tokenizerFromGguf } from '../../src/tokenizer/gguf.ts';
import { ggufMetadata, modelOf, moonlightFolder } from './support.ts';

const withCode = (code: string, words: RegExp | string) =>
  expect.objectContaining({ code, message: expect.stringMatching(words) });

describe('a GGUF vocabulary', () => {
  let good: Map<string, GgufValue>;
  beforeAll(() => {
    good = ggufMetadata(moonlightFolder);
  });

  const list = (key: string) => [...(good.get(`tokenizer.ggml.${key}`) as readonly GgufScalar[])];
  const changed = (key: string, index: number, value: GgufScalar) => list(key).with(index, value);

  const refused: readonly (readonly [string, string, () => GgufValue | undefined, RegExp])[] = [
    ['without tokens', 'tokens', () => undefined, /tokens is missing/],
    ['with tokens that are no list', 'tokens', () => 7, /tokens is not a list/],
    ['with an empty token list', 'tokens', () => [], /0 tokens but/],
    ['with a token that is a number', 'tokens', () => changed('tokens', 5, 5), /token 5 is not a string/],
    ['without token types', 'token_type', () => undefined, /token_type is missing/],
    [
      'with fewer types than tokens',
      'token_type',
      () => list('token_type').slice(1),
      /4352 tokens but 4351 token types/,
    ],
    [
      'with byte tokens of another kind of vocabulary',
      'token_type',
      () => changed('token_type', 9, 6),
      /token 9 has type 6/,
    ],
    ['with a type that does not exist', 'token_type', () => changed('token_type', 9, -1), /token 9 has type -1/],
    [
      'with a token twice',
      'tokens',
      () => changed('tokens', 900, list('tokens')[700]!),
      /700 and 900 are the same bytes/,
    ],
    ['with a control token twice', 'tokens', () => changed('tokens', 4100, '[EOS]'), /are both named '\[EOS\]'/],
    [
      'without one of the single bytes',
      'tokens',
      () => changed('tokens', 0, 'qqqqqqq'),
      /no token for the single byte 0/,
    ],
    [
      'with a token of 2^20 bytes',
      'tokens',
      () => changed('tokens', 300, 'a'.repeat(2 ** 20)),
      /300 is 1048576 bytes long/,
    ],
    [
      'with a control token of 2^20 bytes',
      'tokens',
      () => changed('tokens', 4100, 'a'.repeat(2 ** 20)),
      /4100 is 1048576/,
    ],
    ['with an empty token', 'tokens', () => changed('tokens', 300, ''), /300 is 0 bytes long/],
    ['with a space spelled as a space', 'tokens', () => changed('tokens', 300, 'a b'), /spelling of token 300/],
    [
      'with a character that spells no byte',
      'tokens',
      () => changed('tokens', 300, 'a\u4f60'),
      /spelling of token 300/,
    ],
    ['with bos beyond the end', 'bos_token_id', () => 4352, /bos_token_id is 4352/],
    ['with a negative eos', 'eos_token_id', () => -1, /eos_token_id is -1/],
    ['with an eos of 2^63', 'eos_token_id', () => 2n ** 63n, /eos_token_id is 9223372036854775808/],
    ['with a padding id that is text', 'padding_token_id', () => 'x', /padding_token_id is x/],
  ];
  it.each(refused)('%s is refused', (_, key, value, words) => {
    const metadata = new Map(good);
    const made = value();
    if (made === undefined) metadata.delete(`tokenizer.ggml.${key}`);
    else metadata.set(`tokenizer.ggml.${key}`, made);
    expect(() => tokenizerFromGguf(modelOf(metadata))).toThrow(withCode('VOCABULARY_BAD', words));
  });

  it.each([
    ['tokenizer.ggml.model', 'llama'],
    ['tokenizer.ggml.pre', 'deepseek-v3'],
  ])('of another kind is refused: %s %s', (key, value) => {
    const metadata = new Map(good).set(key, value);
    expect(() => tokenizerFromGguf(modelOf(metadata))).toThrow(withCode('TOKENIZER_UNSUPPORTED', value));
    metadata.delete(key);
    expect(() => tokenizerFromGguf(modelOf(metadata))).toThrow(withCode('TOKENIZER_UNSUPPORTED', 'undefined'));
  });

  it('may have merges that name absent tokens: they are not read', () => {
    const metadata = new Map(good).set('tokenizer.ggml.merges', ['no such', 'Ġ', '']);
    const text = 'The quick brown fox';
    expect(tokenizerFromGguf(modelOf(metadata)).encode(text)).toEqual(tokenizerFromGguf(modelOf(good)).encode(text));
  });

  it('spelled like a byte token is ordinary text', () => {
    const metadata = new Map(good).set('tokenizer.ggml.tokens', changed('tokens', 4000, '<0x-1>'));
    const tokenizer = tokenizerFromGguf(modelOf(metadata));
    expect(tokenizer.decode([4000])).toBe('<0x-1>');
  });
});

describe('a tokenizer folder', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'perigee-tokenizer-'));
    for (const name of ['tiktoken.model', 'tokenizer_config.json']) {
      await writeFile(join(folder, name), await readFile(join(moonlightFolder, name)));
    }
  });
  afterEach(() => rm(folder, { recursive: true }));

  const edit = async (name: string, change: (text: string) => string) => {
    await writeFile(join(folder, name), change(await readFile(join(folder, name), 'utf8')));
  };
  const configure = (change: (config: Record<string, unknown>) => object) =>
    edit('tokenizer_config.json', (text) => JSON.stringify(change(JSON.parse(text))));

  it.each(['tiktoken.model', 'tokenizer_config.json'])('without %s is refused', async (name) => {
    await rm(join(folder, name));
    await expect(tokenizerFromFolder(folder)).rejects.toThrow(withCode('TOKENIZER_NOT_FOUND', name));
  });

  const badLines: readonly (readonly [string, (lines: string[]) => string[], RegExp])[] = [
    ['a rank out of order', (lines) => lines.with(7, lines[8]!), /line 8 is not/],
    ['a rank that is no number', (lines) => lines.with(7, `${lines[7]!.split(' ')[0]} seven`), /line 8 is not/],
    ['no rank', (lines) => lines.with(7, 'AA=='), /line 8 is not/],
    ['a spelling that is not base64', (lines) => lines.with(7, '*A== 7'), /spelling of token 7/],
    ['a spelling cut short', (lines) => lines.with(7, 'AAA 7'), /token 7/],
    ['an empty token', (lines) => lines.with(7, ' 7'), /token 7 is 0 bytes/],
    [
      'a token twice',
      (lines) => lines.with(300, lines[299]!.replace(' 299', ' 300')),
      /299 and 300 are the same bytes/,
    ],
    ['no lines', () => [], /it is empty/],
    ['all but one of the single bytes', (lines) => lines.with(7, 'cXFxcXFxcXE= 7'), /no token for the single byte 7/],
    ['binary rubbish', () => ['\0\x01\xff'.repeat(5000)], /line 1 is not/],
  ];
  it.each(badLines)('whose tiktoken.model has %s is refused', async (_, change, words) => {
    await edit('tiktoken.model', (text) => change(text.trim().split('\n')).join('\n'));
    await expect(tokenizerFromFolder(folder)).rejects.toThrow(withCode('VOCABULARY_BAD', words));
  });

  const badConfigs: readonly (readonly [string, object, RegExp])[] = [
    ['an id below the control tokens', { added_tokens_decoder: { 12: { content: 'x' } } }, /names id 12/],
    ['an id beyond them', { added_tokens_decoder: { 4352: { content: 'x' } } }, /names id 4352/],
    ['an id that is no number', { added_tokens_decoder: { __proto: { content: 'x' } } }, /names id __proto/],
    ['a name twice', { added_tokens_decoder: { 4096: { content: 'x' }, 4097: { content: 'x' } } }, /4096 and 4097/],
    ['a nameless token', { added_tokens_decoder: { 4096: {} } }, /4096 has no content/],
    ['a list of tokens', { added_tokens_decoder: [] }, /is not an object/],
    ['an eos that is no token', { eos_token: '</s>' }, /eos_token is "<\/s>"/],
  ];
  it.each(badConfigs)('whose tokenizer_config.json has %s is refused', async (_, change, words) => {
    await configure((config) => ({ ...config, ...change }));
    await expect(tokenizerFromFolder(folder)).rejects.toThrow(withCode('TOKENIZER_BAD_CONFIG', words));
  });

  it.each(['{', '[]', 'null'])('whose tokenizer_config.json is %s is refused', async (text) => {
    await edit('tokenizer_config.json', () => text);
    await expect(tokenizerFromFolder(folder)).rejects.toThrow(withCode('TOKENIZER_BAD_CONFIG', 'it is not'));
  });

  it('may name its tokens by objects, or not at all', async () => {
    await configure((config) => ({
      ...config,
      eos_token: { content: '<|im_end|>' },
      bos_token: null,
      pad_token: undefined,
    }));
    const tokenizer = await tokenizerFromFolder(folder);
    expect(tokenizer.eosToken).toBe(4098);
    expect(tokenizer.bosToken).toBeNull();
    expect(tokenizer.padToken).toBeNull();
    expect(tokenizer.specials.get('<|reserved_token_4101|>')).toBe(4101);
  });

  it('brings its chat template in a file of its own, in the configuration, or in a list there', async () => {
    await configure((config) => ({
      ...config,
      chat_template: [
        { name: 'tool_use', template: 'no' },
        { name: 'default', template: 'listed' },
      ],
    }));
    expect((await tokenizerFromFolder(folder)).chatTemplate).toBe('listed');
    await configure((config) => ({ ...config, chat_template: 'configured' }));
    expect((await tokenizerFromFolder(folder)).chatTemplate).toBe('configured');
    await writeFile(join(folder, 'chat_template.jinja'), 'filed');
    expect((await tokenizerFromFolder(folder)).chatTemplate).toBe('filed');
  });
});
