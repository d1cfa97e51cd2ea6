/** tokenizer.ggml.* entries from Kimi's tiktoken.model and tokenizer_config.json, in the spelling GGUF readers expect. */
import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { perigeeError } from '../errors.ts';
import { spellBytes } from '../gguf/byte-symbols.ts';
import type { GgufEntry } from '../gguf/write.ts';
import { tokenizerFromFolder } from '../tokenizer/folder.ts';
import type { Tokenizer } from '../tokenizer/types.ts';
import type { HfConfig } from './hf-config.ts';

/** GGUF token types. */
const normal = 1;
const control = 3;
const unused = 5;

/** How llama.cpp calls a vocabulary that is not there. */
const noTokenizer: GgufEntry[] = [{ key: 'tokenizer.ggml.model', type: 'string', value: 'none' }];

/** Entries of the checkpoint's tokenizer; `found` is false when it has no tiktoken.model. */
export async function tokenizerMetadata(
  folder: string,
  config: HfConfig,
): Promise<{ found: boolean; entries: GgufEntry[] }> {
  const file = join(folder, 'tiktoken.model');
  const found = await access(file).then(
    () => true,
    () => false,
  );
  if (!found) return { found, entries: noTokenizer };
  const tokenizer = await tokenizerFromFolder(folder);
  if (tokenizer.vocabularySize > config.vocabulary) {
    const why = `it has ${tokenizer.vocabularySize} tokens, config.json's vocab_size is ${config.vocabulary}`;
    throw perigeeError('CONVERT_TOKENIZER', { file, why });
  }
  return { found, entries: vocabularyEntries(tokenizer, config) };
}

function vocabularyEntries(tokenizer: Tokenizer, config: HfConfig): GgufEntry[] {
  const id = (key: string, value: number | null): GgufEntry[] =>
    value === null ? [] : [{ key: `tokenizer.ggml.${key}_token_id`, type: 'u32', value }];
  const { chatTemplate } = tokenizer;
  const tokens: string[] = [];
  const types: number[] = [];
  const ranked: string[] = [];
  for (let token = 0; token < config.vocabulary; token += 1) {
    const known = token < tokenizer.vocabularySize;
    const special = known && tokenizer.isSpecial(token);
    const bytes = known ? tokenizer.bytes(token) : new Uint8Array();
    if (known && !special) ranked.push(Buffer.from(bytes).toString('latin1'));
    tokens.push(special ? Buffer.from(bytes).toString('utf8') : known ? spellBytes(bytes) : `[PAD${token}]`);
    types.push(special ? control : known ? normal : unused);
  }
  return [
    { key: 'tokenizer.ggml.model', type: 'string', value: 'gpt2' },
    { key: 'tokenizer.ggml.pre', type: 'string', value: 'kimi-k2' },
    { key: 'tokenizer.ggml.tokens', type: 'array', of: 'string', value: tokens },
    { key: 'tokenizer.ggml.token_type', type: 'array', of: 'i32', value: types },
    { key: 'tokenizer.ggml.merges', type: 'array', of: 'string', value: rebuildMerges(ranked) },
    ...id('bos', config.bos ?? tokenizer.bosToken),
    ...id('eos', config.eos ?? tokenizer.eosToken),
    ...id('unknown', tokenizer.specials.get('[UNK]') ?? null),
    ...id('padding', config.pad ?? tokenizer.padToken),
    ...(chatTemplate === null
      ? []
      : [{ key: 'tokenizer.chat_template', type: 'string', value: chatTemplate } as const]),
  ];
}

/**
 * The merge list that ranks imply: a token's two halves are what byte-pair merging makes of its bytes when only lower ranks
 * may be used. `ranked` has the bytes of each token as code units; tokens that do not come out as two parts have no merge.
 */
export function rebuildMerges(ranked: readonly string[]): string[] {
  const ranks = new Map(ranked.map((token, rank) => [token, rank]));
  const spell = (part: string) => spellBytes(Buffer.from(part, 'latin1'));
  const merges: string[] = [];
  for (const [rank, token] of ranked.entries()) {
    if (token.length < 2) continue;
    const [left, right, ...rest] = mergeBelow(token, rank, ranks);
    if (left === undefined || right === undefined || rest.length > 0) continue;
    merges.push(`${spell(left)} ${spell(right)}`);
  }
  return merges;
}

function mergeBelow(token: string, limit: number, ranks: ReadonlyMap<string, number>): string[] {
  const parts = [...token];
  while (parts.length > 2) {
    let best = limit;
    let at = -1;
    for (let i = 0; i + 1 < parts.length; i += 1) {
      const rank = ranks.get(`${parts[i]}${parts[i + 1]}`) ?? limit;
      if (rank < best) {
        best = rank;
        at = i;
      }
    }
    if (at < 0) break;
    parts.splice(at, 2, `${parts[at]}${parts[at + 1]}`);
  }
  return parts;
}
