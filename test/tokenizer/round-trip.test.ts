import { beforeAll, describe, expect, it } from 'vitest';
import { tokenizerFromFolder } from '../../src/tokenizer/folder.ts';
import type { Tokenizer } from '../../src/tokenizer/types.ts';
import { moonlightFolder, randomIntegers, randomText } from './support.ts';

const rounds = 400;
let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await tokenizerFromFolder(moonlightFolder);
});

function stream(ids: Iterable<number>): string {
  const decoder = tokenizer.streamDecoder();
  let text = '';
  for (const id of ids) text += decoder.push(id);
  return text + decoder.end();
}

describe('encode and decode', () => {
  it('give any text back', () => {
    const random = randomIntegers(1);
    for (let round = 0; round < rounds; round++) {
      const text = randomText(random);
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      expect(stream(tokenizer.encode(text))).toBe(text);
    }
  });

  it('read lone surrogates as U+FFFD', () => {
    expect(tokenizer.decode(tokenizer.encode('a\ud83db\ude00'))).toBe('a\ufffdb\ufffd');
    const random = randomIntegers(2);
    for (let round = 0; round < rounds; round++) {
      const text = randomText(random, true);
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text.toWellFormed());
    }
  });

  it('put every character into some piece, however pieces are joined', () => {
    const random = randomIntegers(3);
    for (let round = 0; round < rounds; round++) {
      const ids = [...tokenizer.encode(randomText(random)), ...tokenizer.encode(randomText(random))];
      const bytes = Buffer.concat(ids.map((id) => tokenizer.bytes(id)));
      expect(tokenizer.decode(ids)).toBe(bytes.toString('utf8'));
    }
  });

  it('refuse ids that do not exist', () => {
    for (const id of [-1, tokenizer.vocabularySize, 1.5, Number.NaN]) {
      expect(() => tokenizer.decode([id])).toThrow(expect.objectContaining({ code: 'TOKEN_OUT_OF_RANGE' }));
      expect(() => tokenizer.bytes(id)).toThrow(expect.objectContaining({ code: 'TOKEN_OUT_OF_RANGE' }));
      expect(() => tokenizer.streamDecoder().push(id)).toThrow(expect.objectContaining({ code: 'TOKEN_OUT_OF_RANGE' }));
    }
  });

  it('hand out bytes that may be written to', () => {
    const [id] = tokenizer.encode('a');
    tokenizer.bytes(id!).fill(0);
    expect(tokenizer.decode([id!])).toBe('a');
  });
});

describe('control tokens', () => {
  it('are never read in ordinary text', () => {
    const random = randomIntegers(4);
    const names = [...tokenizer.specials.keys()];
    for (const name of names) {
      const text = randomText(random) + name + randomText(random);
      const ids = tokenizer.encode(text);
      expect(ids.some((id) => tokenizer.isSpecial(id))).toBe(false);
      expect(tokenizer.decode(ids)).toBe(text);
    }
  });

  it('are read by name where the caller says so', () => {
    for (const [name, id] of tokenizer.specials) {
      expect(tokenizer.encode(`a${name}b`, { specials: true })).toEqual([
        ...tokenizer.encode('a'),
        id,
        ...tokenizer.encode('b'),
      ]);
      expect(tokenizer.decode([id])).toBe(name);
      expect(tokenizer.isSpecial(id)).toBe(true);
    }
  });

  it('end the turn: <|im_end|>, [EOS] and [EOT]', () => {
    const names = tokenizer.stopTokens.map((id) => tokenizer.decode([id]));
    expect(names.toSorted()).toEqual(['<|im_end|>', '[EOS]', '[EOT]']);
  });
});

describe('the stream decoder', () => {
  /** Ids of the single bytes, whatever the merges would do. */
  const byteIds = (bytes: Iterable<number>) => {
    const ids = new Map<number, number>();
    for (let id = 0; id < tokenizer.vocabularySize; id++) {
      const token = tokenizer.bytes(id);
      if (token.length === 1 && !tokenizer.isSpecial(id)) ids.set(token[0]!, id);
    }
    return Array.from(bytes, (byte) => ids.get(byte)!);
  };

  it('holds back a character until it is whole', () => {
    const decoder = tokenizer.streamDecoder();
    expect(byteIds(Buffer.from('é😀\ufeff')).map((id) => decoder.push(id))).toEqual([
      '',
      'é',
      '',
      '',
      '',
      '😀',
      '',
      '',
      '\ufeff',
    ]);
    expect(decoder.end()).toBe('');
  });

  it('replaces what is left at the end', () => {
    const decoder = tokenizer.streamDecoder();
    expect(byteIds([0xf0, 0x9f, 0x98]).map((id) => decoder.push(id))).toEqual(['', '', '']);
    expect(decoder.end()).toBe('\ufffd');
  });

  it('replaces bytes as soon as they can no longer become a character', () => {
    const decoder = tokenizer.streamDecoder();
    expect(byteIds([0xe2, 0x82, 0x41, 0xff, 0x42]).map((id) => decoder.push(id))).toEqual([
      '',
      '',
      '\ufffdA',
      '\ufffd',
      'B',
    ]);
    expect(decoder.push(tokenizer.specials.get('<|im_end|>')!)).toBe('<|im_end|>');
  });

  it('gives the same text as decoding at once, for any ids', () => {
    const random = randomIntegers(5);
    const bytes = byteIds(Array.from({ length: 256 }, (_, byte) => byte));
    for (let round = 0; round < rounds; round++) {
      const ids = Array.from({ length: random(30) }, () =>
        random(2) === 0 ? bytes[random(256)]! : random(tokenizer.vocabularySize),
      );
      expect(stream(ids)).toBe(tokenizer.decode(ids));
    }
  });
});
