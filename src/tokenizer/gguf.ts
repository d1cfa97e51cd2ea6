/** A tokenizer from the metadata of a GGUF file: tokenizer.ggml.* */
import { perigeeError } from '../errors.ts';
import { writeSpelled } from '../gguf/byte-symbols.ts';
import type { GgufModel, GgufScalar } from '../gguf/types.ts';
import { TokenPool } from './token-pool.ts';
import { KimiTokenizer } from './tokenizer.ts';
import type { Tokenizer } from './types.ts';

/** tokenizer.ggml.token_type */
const TokenType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5 } as const;
const specialTypes: readonly unknown[] = [
  TokenType.unknown,
  TokenType.control,
  TokenType.userDefined,
  TokenType.unused,
];

/**
 * The tokenizer of `model`. Merges are not read: a kimi-k2 vocabulary is in merge order, so the ids say it all.
 * Throws TOKENIZER_UNSUPPORTED or VOCABULARY_BAD.
 */
export function tokenizerFromGguf(model: GgufModel): Tokenizer {
  const pool = new TokenPool(model.files[0]?.path ?? 'GGUF');
  const kind = model.metadata.get('tokenizer.ggml.model');
  const pre = model.metadata.get('tokenizer.ggml.pre');
  if (kind !== 'gpt2' || pre !== 'kimi-k2') {
    throw perigeeError('TOKENIZER_UNSUPPORTED', { file: pool.file, found: `model '${kind}', pre '${pre}'` });
  }
  const tokens = listOf(model, pool, 'tokenizer.ggml.tokens');
  const types = listOf(model, pool, 'tokenizer.ggml.token_type');
  if (types.length !== tokens.length) {
    throw pool.error(`it has ${tokens.length} tokens but ${types.length} token types`);
  }
  const specials = readTokens(pool, tokens, types);
  const template = model.metadata.get('tokenizer.chat_template');
  return new KimiTokenizer({
    pool,
    specials,
    bosToken: tokenId(model, pool, 'tokenizer.ggml.bos_token_id'),
    eosToken: tokenId(model, pool, 'tokenizer.ggml.eos_token_id'),
    padToken: tokenId(model, pool, 'tokenizer.ggml.padding_token_id'),
    chatTemplate: typeof template === 'string' ? template : null,
  });
}

/** Puts every token into the pool; returns the control tokens by name. */
function readTokens(pool: TokenPool, tokens: readonly GgufScalar[], types: readonly GgufScalar[]): Map<string, number> {
  const specials = new Map<string, number>();
  for (const [id, text] of tokens.entries()) {
    if (typeof text !== 'string') throw pool.error(`token ${id} is not a string`);
    if (types[id] === TokenType.normal) {
      pool.add(text.length, (bytes, offset) => writeSpelled(text, bytes, offset));
    } else if (specialTypes.includes(types[id])) {
      // llama.cpp's converter writes [PADn] for slots without a name; the official encoder names them like this.
      const name = text === `[PAD${id}]` ? `<|reserved_token_${id}|>` : text;
      if (specials.has(name)) throw pool.error(`tokens ${specials.get(name)} and ${id} are both named '${name}'`);
      pool.addName(name);
      specials.set(name, id);
    } else {
      throw pool.error(`token ${id} has type ${types[id]}; a byte pair vocabulary has types 1 to 5`);
    }
  }
  return specials;
}

function listOf(model: GgufModel, pool: TokenPool, key: string): readonly GgufScalar[] {
  const value = model.metadata.get(key);
  if (!Array.isArray(value)) throw pool.error(`${key} ${value === undefined ? 'is missing' : 'is not a list'}`);
  return value;
}

function tokenId(model: GgufModel, pool: TokenPool, key: string): number | null {
  const id = model.metadata.get(key);
  if (id === undefined) return null;
  if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= pool.size) {
    throw pool.error(`${key} is ${id}, which is none of the ids 0 to ${pool.size - 1}`);
  }
  return id;
}
