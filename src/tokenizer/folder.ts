/** A tokenizer from the files of a Kimi checkpoint: tiktoken.model, tokenizer_config.json, chat_template.jinja. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { perigeeError } from '../errors.ts';
import { TokenPool } from './token-pool.ts';
import { KimiTokenizer } from './tokenizer.ts';
import type { Tokenizer } from './types.ts';

/** Ids after the byte pairs that are control tokens, named in tokenizer_config.json or not. */
const specialSlots = 256;

/**
 * The tokenizer of the checkpoint in `folder`, which may hold nothing else.
 * Throws TOKENIZER_NOT_FOUND, TOKENIZER_BAD_CONFIG or VOCABULARY_BAD.
 */
export async function tokenizerFromFolder(folder: string): Promise<Tokenizer> {
  const [ranks, config, template] = await Promise.all([
    readNeeded(folder, 'tiktoken.model'),
    readNeeded(folder, 'tokenizer_config.json'),
    readIfThere(folder, 'chat_template.jinja'),
  ]);
  const pool = new TokenPool(join(folder, 'tiktoken.model'));
  readRanks(pool, ranks.toString('latin1'));
  const settings = new TokenizerConfig(join(folder, 'tokenizer_config.json'), config.toString('utf8'));
  const specials = settings.specials(pool.size);
  for (const name of specials.keys()) pool.addName(name);
  return new KimiTokenizer({
    pool,
    specials,
    bosToken: settings.tokenNamed('bos_token', specials),
    eosToken: settings.tokenNamed('eos_token', specials),
    padToken: settings.tokenNamed('pad_token', specials),
    chatTemplate: template?.toString('utf8') ?? settings.chatTemplate(),
  });
}

/** Reads tiktoken.model: a line per token, base64 of its bytes, a space, its rank; ranks count from 0. */
function readRanks(pool: TokenPool, text: string): void {
  for (let start = 0; start < text.length; ) {
    const newline = text.indexOf('\n', start);
    const end = newline < 0 ? text.length : newline;
    const line = text.slice(start, end).trimEnd();
    start = end + 1;
    if (line === '') continue;
    const space = line.indexOf(' ');
    const encoded = line.slice(0, space);
    if (space < 0 || line.slice(space + 1) !== String(pool.size)) {
      throw pool.error(`line ${pool.size + 1} is not base64, a space and the rank ${pool.size}`);
    }
    const padding = encoded.endsWith('==') ? 2 : encoded.endsWith('=') ? 1 : 0;
    // A spelling that is not base64 yields fewer bytes, or a length that is no whole number.
    pool.add((encoded.length / 4) * 3 - padding, (bytes, offset) => bytes.write(encoded, offset, 'base64'));
  }
  if (pool.size === 0) throw pool.error('it is empty');
}

/** tokenizer_config.json, read with the checks it needs. */
class TokenizerConfig {
  readonly #file: string;
  readonly #fields: Readonly<Record<string, unknown>>;

  constructor(file: string, text: string) {
    this.#file = file;
    let fields: unknown;
    try {
      fields = JSON.parse(text);
    } catch (cause) {
      throw perigeeError('TOKENIZER_BAD_CONFIG', { file, what: `it is not JSON (${String(cause)})` }, { cause });
    }
    if (!isRecord(fields)) throw this.#bad('it is not a JSON object');
    this.#fields = fields;
  }

  /** The control tokens by name, in id order: the 256 ids from `first`. */
  specials(first: number): Map<string, number> {
    const added = this.#fields.added_tokens_decoder ?? {};
    if (!isRecord(added)) throw this.#bad('added_tokens_decoder is not an object');
    for (const id of Object.keys(added)) {
      if (!(/^\d+$/.test(id) && Number(id) >= first && Number(id) < first + specialSlots)) {
        const last = first + specialSlots - 1;
        throw this.#bad(`added_tokens_decoder names id ${id}; control tokens have the ids ${first} to ${last}`);
      }
    }
    const specials = new Map<string, number>();
    for (let id = first; id < first + specialSlots; id++) {
      const entry = added[id] ?? { content: `<|reserved_token_${id}|>` };
      const name = isRecord(entry) ? entry.content : undefined;
      if (typeof name !== 'string' || name === '') throw this.#bad(`added_tokens_decoder.${id} has no content`);
      if (specials.has(name)) throw this.#bad(`ids ${specials.get(name)} and ${id} are both named '${name}'`);
      specials.set(name, id);
    }
    return specials;
  }

  /** The id of the control token that `field` names, as a string or an object with its content. */
  tokenNamed(field: string, specials: ReadonlyMap<string, number>): number | null {
    const value = this.#fields[field] ?? null;
    if (value === null) return null;
    const name = isRecord(value) ? value.content : value;
    const id = typeof name === 'string' ? specials.get(name) : undefined;
    if (id === undefined) throw this.#bad(`${field} is ${JSON.stringify(name)}, which names no control token`);
    return id;
  }

  /** chat_template: a string, or a list of named ones of which 'default' is meant. */
  chatTemplate(): string | null {
    const value = this.#fields.chat_template;
    const named = Array.isArray(value) ? value.filter(isRecord).find((entry) => entry.name === 'default') : undefined;
    const template = named ? named.template : value;
    return typeof template === 'string' ? template : null;
  }

  #bad(what: string): Error {
    return perigeeError('TOKENIZER_BAD_CONFIG', { file: this.#file, what });
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

async function readNeeded(folder: string, name: string): Promise<Buffer> {
  const file = await readIfThere(folder, name);
  if (!file) throw perigeeError('TOKENIZER_NOT_FOUND', { path: folder, missing: name });
  return file;
}

async function readIfThere(folder: string, name: string): Promise<Buffer | null> {
  try {
    return await readFile(join(folder, name));
  } catch (cause) {
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
    throw cause;
  }
}
