/** What the tokenizer's tests share: their files, a GGUF model built by hand, seeded random text. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { GgufModel, GgufValue } from '../../src/gguf/types.ts';

const fixtures = join(import.meta.dirname, '..', 'fixtures');

/** A small vocabulary of Kimi's format, in the checkout. */
export const moonlightFolder = join(fixtures, 'moonlight');

/** The real vocabulary of Kimi K2, which only some machines have. */
export const kimiFolder = join(import.meta.dirname, '..', '..', '..', 'shared', 'kimi-tokenizer');
export const kimiMissing = !existsSync(join(kimiFolder, 'tiktoken.model'));

export interface TextCase {
  readonly text: string;
  readonly pieces: readonly string[];
  readonly ids: readonly number[];
  readonly plain: readonly number[];
}

export interface LongCase {
  readonly unit: string;
  readonly count: number;
  readonly ids: { readonly count: number; readonly sha256: string };
  readonly plain: { readonly count: number; readonly sha256: string };
}

/** Goldens made by fixtures/tokenizer/make-cases.py. */
export function readCases(name: string): { readonly cases: readonly TextCase[]; readonly long: readonly LongCase[] } {
  return JSON.parse(readFileSync(join(fixtures, 'tokenizer', `${name}.json`), 'utf8'));
}

/**
 * What llama.cpp's converter writes for the checkpoint in `folder`: GPT-2 spelling, all 256 control tokens of type 3, slots
 * without a name as [PADn].
 */
export function ggufMetadata(folder: string): Map<string, GgufValue> {
  const lines = readFileSync(join(folder, 'tiktoken.model'), 'latin1').trim().split('\n');
  const config = JSON.parse(readFileSync(join(folder, 'tokenizer_config.json'), 'utf8'));
  const symbols = gpt2Symbols();
  const tokens = lines.map((line) => {
    return Array.from(Buffer.from(line.split(' ')[0]!, 'base64'), (byte) => symbols[byte]).join('');
  });
  const first = tokens.length;
  const idOf = (field: string) => {
    const entries = Object.entries<{ content: string }>(config.added_tokens_decoder);
    return Number(entries.find(([, entry]) => entry.content === config[field])![0]);
  };
  for (let id = first; id < first + 256; id++) tokens.push(config.added_tokens_decoder[id]?.content ?? `[PAD${id}]`);
  return new Map<string, GgufValue>([
    ['tokenizer.ggml.model', 'gpt2'],
    ['tokenizer.ggml.pre', 'kimi-k2'],
    ['tokenizer.ggml.tokens', tokens],
    ['tokenizer.ggml.token_type', tokens.map((_, id) => (id < first ? 1 : 3))],
    ['tokenizer.ggml.bos_token_id', idOf('bos_token')],
    ['tokenizer.ggml.eos_token_id', idOf('eos_token')],
    ['tokenizer.ggml.padding_token_id', idOf('pad_token')],
    ['tokenizer.chat_template', config.chat_template ?? '{{ messages }}'],
  ]);
}

/** The bytes' symbols as GPT-2 published them: ! to ~, ¡ to ¬ and ® to ÿ are themselves, the rest follow from U+0100. */
function gpt2Symbols(): string[] {
  const themselves = /^[!-~¡-¬®-ÿ]$/;
  const latin = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte));
  const others = latin.filter((character) => !themselves.test(character));
  return latin.map((character) => {
    const place = others.indexOf(character);
    return place < 0 ? character : String.fromCharCode(0x100 + place);
  });
}

export function modelOf(metadata: ReadonlyMap<string, GgufValue>): GgufModel {
  return { files: [{ path: 'by-hand.gguf', bytes: 0 }], version: 3, metadata, tensors: new Map() };
}

/** Whole numbers below `limit`, the same for the same seed: the high bits of a linear congruential generator. */
export function randomIntegers(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return Math.floor(((state >>> 0) / 2 ** 32) * limit);
  };
}

/** Text of up to 40 characters from all over Unicode, lone surrogates included where `surrogates` says so. */
export function randomText(random: (limit: number) => number, surrogates = false): string {
  const ranges = [
    [0x20, 0x7f],
    [0, 0x250],
    [0x300, 0x1100],
    [0x2000, 0x3400],
    [0x4e00, 0x9fff],
    [0x1f300, 0x1faff],
  ];
  let text = '';
  for (let count = random(40); count > 0; count--) {
    const [least, end] = ranges[random(ranges.length)]!;
    text += String.fromCodePoint(least! + random(end! - least!));
    if (surrogates && random(8) === 0) text += String.fromCharCode(0xd800 + random(0x800));
  }
  return text;
}
