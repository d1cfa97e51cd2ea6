/** tokenizer.ggml.* entries from Kimi's tiktoken.model and tokenizer_config.json, in the spelling GGUF readers expect. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { perigeeError } from '../errors.ts';
import type { GgufEntry } from '../gguf/write.ts';
import type { HfConfig } from './hf-config.ts';
import { isObject, parseJsonObject } from './safetensors.ts';

/** Control-token slots that follow the byte-pair tokens, named or not. */
const specialSlots = 256;
/** GGUF token types. */
const normal = 1;
const control = 3;
const unused = 5;

/** Entries of the checkpoint's tokenizer, or null when it has no tiktoken.model. */
export async function tokenizerMetadata(folder: string, config: HfConfig): Promise<GgufEntry[] | null> {
  const file = join(folder, 'tiktoken.model');
  const model = await readOptional(file);
  if (model === null) return null;
  const settingsFile = join(folder, 'tokenizer_config.json');
  const settings = parseJsonObject(settingsFile, (await readOptional(settingsFile)) ?? '{}');
  const ranked = parseTiktoken(file, model);
  const names = specialNames(settings);
  const { tokens, types } = tokenList(file, ranked, names, config.vocabulary);
  const idOf = (field: string) => {
    const index = tokens.indexOf(tokenName(settings[field]), ranked.length);
    return index < 0 ? null : index;
  };
  const id = (key: string, value: number | null): GgufEntry[] =>
    value === null ? [] : [{ key: `tokenizer.ggml.${key}_token_id`, type: 'u32', value }];
  const template = (await readOptional(join(folder, 'chat_template.jinja'))) ?? chatTemplate(settings);
  return [
    { key: 'tokenizer.ggml.model', type: 'string', value: 'gpt2' },
    { key: 'tokenizer.ggml.pre', type: 'string', value: 'kimi-k2' },
    { key: 'tokenizer.ggml.tokens', type: 'array', of: 'string', value: tokens },
    { key: 'tokenizer.ggml.token_type', type: 'array', of: 'i32', value: types },
    { key: 'tokenizer.ggml.merges', type: 'array', of: 'string', value: rebuildMerges(ranked) },
    ...id('bos', config.bos ?? idOf('bos_token')),
    ...id('eos', config.eos ?? idOf('eos_token')),
    ...id('unknown', idOf('unk_token')),
    ...id('padding', config.pad ?? idOf('pad_token')),
    ...(template === null ? [] : [{ key: 'tokenizer.chat_template', type: 'string', value: template } as const]),
  ];
}

async function readOptional(file: string): Promise<string | null> {
  return readFile(file, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return null;
    throw cause;
  });
}

/** Token bytes by id, each as a string of code units 0..255. A line is the token's bytes in base64, a space, its id. */
export function parseTiktoken(file: string, text: string): string[] {
  const tokens: string[] = [];
  for (const [index, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    const [base64, rank] = line.trim().split(' ');
    if (base64 === undefined || Number(rank) !== tokens.length) {
      const why = `line ${index + 1} should carry token ${tokens.length}, it reads '${line.slice(0, 60)}'`;
      throw perigeeError('CONVERT_TOKENIZER', { file, why });
    }
    tokens.push(Buffer.from(base64, 'base64').toString('latin1'));
  }
  return tokens;
}

function specialNames(settings: Record<string, unknown>): Map<number, string> {
  const names = new Map<number, string>();
  const added = isObject(settings.added_tokens_decoder) ? settings.added_tokens_decoder : {};
  for (const [id, entry] of Object.entries(added)) {
    if (isObject(entry) && typeof entry.content === 'string') names.set(Number(id), entry.content);
  }
  return names;
}

function tokenName(value: unknown): string {
  return isObject(value) ? String(value.content) : String(value);
}

/** The template, or of a list of named ones the one called default. */
function chatTemplate(settings: Record<string, unknown>): string | null {
  const value = settings.chat_template;
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return null;
  const named: unknown = value.find((entry) => isObject(entry) && entry.name === 'default');
  return isObject(named) && typeof named.template === 'string' ? named.template : null;
}

function tokenList(file: string, ranked: readonly string[], names: ReadonlyMap<number, string>, vocabulary: number) {
  if (ranked.length > vocabulary) {
    const why = `it has ${ranked.length} tokens, config.json's vocab_size is ${vocabulary}`;
    throw perigeeError('CONVERT_TOKENIZER', { file, why });
  }
  const tokens = ranked.map(spellBytes);
  const types = ranked.map(() => normal);
  for (let id = ranked.length; id < vocabulary; id += 1) {
    const slot = id < ranked.length + specialSlots || names.has(id);
    tokens.push(slot ? (names.get(id) ?? `<|reserved_token_${id}|>`) : `[PAD${id}]`);
    types.push(slot ? control : unused);
  }
  return { tokens, types };
}

/**
 * GPT-2's printable alphabet for bytes: printable Latin-1 characters stand for themselves, the other 68 bytes, in order,
 * for U+0100 onward (so a space is U+0120).
 */
const byteSpelling: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    return String.fromCharCode(printable ? byte : next++);
  });
})();

function spellBytes(bytes: string): string {
  let text = '';
  for (let i = 0; i < bytes.length; i += 1) text += byteSpelling[bytes.charCodeAt(i)];
  return text;
}

/**
 * The merge list that ranks imply: a token's two halves are what byte-pair merging makes of its bytes when only lower ranks
 * may be used. Tokens that do not come out as two parts have no merge.
 */
export function rebuildMerges(ranked: readonly string[]): string[] {
  const ranks = new Map(ranked.map((token, rank) => [token, rank]));
  const merges: string[] = [];
  for (const [rank, token] of ranked.entries()) {
    if (token.length < 2) continue;
    const [left, right, ...rest] = mergeBelow(token, rank, ranks);
    if (left === undefined || right === undefined || rest.length > 0) continue;
    merges.push(`${spellBytes(left)} ${spellBytes(right)}`);
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
