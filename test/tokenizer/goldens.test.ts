import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { tokenizerFromFolder } from '../../src/tokenizer/folder.ts';
import { tokenizerFromGguf } from '../../src/tokenizer/gguf.ts';
import { pieceEnd } from '../../src/tokenizer/split.ts';
import type { Tokenizer } from '../../src/tokenizer/types.ts';
import { ggufMetadata, kimiFolder, kimiMissing, modelOf, moonlightFolder, readCases } from './support.ts';

const sources = {
  'tiktoken.model': (folder: string) => tokenizerFromFolder(folder),
  GGUF: async (folder: string) => tokenizerFromGguf(modelOf(ggufMetadata(folder))),
};

describe('split', () => {
  it('cuts text as the official pattern does', () => {
    for (const { text, pieces } of readCases('moonlight').cases) {
      expect(split(text), JSON.stringify(text)).toEqual(pieces);
    }
  });
});

describe.each(Object.entries(sources))('the small vocabulary, from %s', (_, open) => {
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    tokenizer = await open(moonlightFolder);
  });

  it('gives the ids of the official encoder', () => expectCases(tokenizer, 'moonlight'));
  it('cuts very long text where the official encoder does', () => expectLongCases(tokenizer, 'moonlight'));
});

const skipKimi = kimiMissing ? ' (skipped: the real vocabulary is not beside this checkout)' : '';
describe.skipIf(kimiMissing).each(Object.entries(sources))(`Kimi K2's vocabulary, from %s${skipKimi}`, (_, open) => {
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    tokenizer = await open(kimiFolder);
  });

  it('gives the ids of the official encoder', () => expectCases(tokenizer, 'kimi'));
  it('cuts very long text where the official encoder does', () => expectLongCases(tokenizer, 'kimi'));

  it('gives the recorded ids of texts and rendered conversations', () => {
    const goldens = JSON.parse(readFileSync(join(kimiFolder, 'goldens.json'), 'utf8'));
    expect(goldens.tokenize.length).toBeGreaterThan(10);
    for (const { text, ids, ids_plain } of goldens.tokenize) {
      expect(tokenizer.encode(text, { specials: true }), text).toEqual(ids);
      expect(tokenizer.encode(text), text).toEqual(ids_plain);
      expect(tokenizer.decode(ids), text).toBe(text);
    }
    const renderings = goldens.render
      .flatMap((row: object) => Object.values(row))
      .filter((value: unknown) => {
        return typeof value === 'object' && value !== null && 'ids' in value;
      });
    expect(renderings.length).toBeGreaterThan(3);
    for (const { text, ids } of renderings) {
      expect(tokenizer.encode(text, { specials: true }), text).toEqual(ids);
      expect(tokenizer.decode(ids), text).toBe(text);
    }
  });

  it('has the ids of the reference', () => {
    expect(tokenizer.vocabularySize).toBe(163_840);
    expect(tokenizer.bosToken).toBe(163_584);
    expect(tokenizer.eosToken).toBe(163_585);
    expect(tokenizer.padToken).toBe(163_839);
    expect(new Set(tokenizer.stopTokens)).toEqual(new Set([163_585, 163_586, 163_593]));
    expect(tokenizer.specials.get('<|tool_calls_section_begin|>')).toBe(163_595);
    expect(tokenizer.specials.get('<|reserved_token_163589|>')).toBe(163_589);
    expect(tokenizer.specials.size).toBe(256);
  });
});

function split(text: string): string[] {
  const pieces: string[] = [];
  for (let at = 0; at < text.length; ) {
    const end = pieceEnd(text, at);
    pieces.push(text.slice(at, end));
    at = end;
  }
  return pieces;
}

function expectCases(tokenizer: Tokenizer, name: string): void {
  for (const { text, ids, plain } of readCases(name).cases) {
    expect(tokenizer.encode(text, { specials: true }), JSON.stringify(text)).toEqual(ids);
    expect(tokenizer.encode(text), JSON.stringify(text)).toEqual(plain);
    expect(tokenizer.decode(ids)).toBe(text);
  }
}

/** The goldens hash the JSON array as Python writes it. */
function digest(ids: readonly number[]) {
  return {
    count: ids.length,
    sha256: createHash('sha256')
      .update(`[${ids.join(', ')}]`)
      .digest('hex'),
  };
}

function expectLongCases(tokenizer: Tokenizer, name: string): void {
  for (const { unit, count, ids, plain } of readCases(name).long) {
    const text = unit.repeat(count);
    expect(digest(tokenizer.encode(text, { specials: true })), `${count} times ${JSON.stringify(unit)}`).toEqual(ids);
    expect(digest(tokenizer.encode(text)), `${count} times ${JSON.stringify(unit)}`).toEqual(plain);
  }
}
