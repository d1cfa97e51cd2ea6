import { copyFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { spellBytes, writeSpelled } from '../../src/gguf/byte-symbols.ts';
import { type GgufEntry, writeGguf } from '../../src/gguf/write.ts';
import { openTokenizer } from '../../src/tokenizer/open.ts';
import { ggufMetadata, moonlightFolder } from './support.ts';

describe('openTokenizer', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'perigee-open-'));
    const metadata = [...ggufMetadata(moonlightFolder)].map(([key, value]): GgufEntry => {
      if (typeof value === 'string') return { key, type: 'string', value };
      if (typeof value === 'number') return { key, type: 'u32', value };
      return typeof (value as unknown[])[0] === 'string'
        ? { key, type: 'array', of: 'string', value: value as string[] }
        : { key, type: 'array', of: 'i32', value: value as number[] };
    });
    await writeGguf(join(folder, 'tiny.gguf'), { metadata: [architecture, ...metadata], tensors: [] });
  });
  afterAll(() => rm(folder, { recursive: true }));
  const architecture: GgufEntry = { key: 'general.architecture', type: 'string', value: 'deepseek2' };

  it('reads a folder with tiktoken.model, a GGUF file, and a folder with one, alike', async () => {
    const text = "Don't <|im_end|> 你好 café 12345";
    const reference = await openTokenizer(moonlightFolder);
    for (const path of [join(folder, 'tiny.gguf'), folder]) {
      const tokenizer = await openTokenizer(path);
      expect(tokenizer.encode(text, { specials: true })).toEqual(reference.encode(text, { specials: true }));
      expect([...tokenizer.specials]).toEqual([...reference.specials]);
      expect(tokenizer.chatTemplate).toBe(reference.chatTemplate);
      expect(tokenizer.stopTokens).toEqual(reference.stopTokens);
    }
  });

  it('says so when there is nothing', async () => {
    await expect(openTokenizer(join(folder, 'absent'))).rejects.toThrow(
      expect.objectContaining({ code: 'MODEL_NOT_FOUND' }),
    );
  });

  it('says which file a folder with half a tokenizer lacks', async () => {
    const half = await mkdtemp(join(tmpdir(), 'perigee-half-'));
    await copyFile(join(moonlightFolder, 'tiktoken.model'), join(half, 'tiktoken.model'));
    await expect(openTokenizer(half)).rejects.toThrow(expect.objectContaining({ code: 'TOKENIZER_NOT_FOUND' }));
    await rm(half, { recursive: true });
  });
});

describe('the spelling of bytes', () => {
  it('is a printable character for each, and reads back', () => {
    const bytes = Uint8Array.from({ length: 256 }, (_, byte) => byte);
    const spelling = spellBytes(bytes);
    expect(spelling).toMatch(/^[^\p{Z}\p{C}]{256}$/u);
    expect(spellBytes(Buffer.from(' \n'))).toBe('ĠĊ');
    const read = new Uint8Array(257);
    expect(writeSpelled(spelling, read, 1)).toBe(256);
    expect(read.subarray(1)).toEqual(bytes);
  });
});
