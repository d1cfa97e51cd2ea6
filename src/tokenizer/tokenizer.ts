/** Kimi K2's tokenizer over a vocabulary from any source: cut, find control tokens, split, merge; and back. */
import { perigeeError } from '../errors.ts';
import { BytePairEncoder } from './byte-pairs.ts';
import { cutLongText } from './long-text.ts';
import { pieceEnd } from './split.ts';
import { Utf8StreamDecoder } from './stream-decoder.ts';
import type { TokenPool } from './token-pool.ts';
import type { StreamDecoder, Tokenizer } from './types.ts';
import { Vocabulary } from './vocabulary.ts';

/** Control tokens that end an assistant's turn whatever the file's eos says: configs of Kimi K2 disagree on it. */
const stopNames = ['<|im_end|>', '[EOS]', '[EOT]'];

/** What a vocabulary file says. Control tokens are in the pool too, spelled by their names. */
export interface TokenizerParts {
  readonly pool: TokenPool;
  readonly specials: ReadonlyMap<string, number>;
  readonly bosToken: number | null;
  readonly eosToken: number | null;
  readonly padToken: number | null;
  readonly chatTemplate: string | null;
}

export class KimiTokenizer implements Tokenizer {
  readonly specials: ReadonlyMap<string, number>;
  readonly stopTokens: readonly number[];
  readonly bosToken: number | null;
  readonly eosToken: number | null;
  readonly padToken: number | null;
  readonly chatTemplate: string | null;
  readonly #vocabulary: Vocabulary;
  readonly #pairs: BytePairEncoder;
  readonly #specialIds: ReadonlySet<number>;
  readonly #specialPattern: RegExp;

  constructor(parts: TokenizerParts) {
    this.specials = parts.specials;
    this.bosToken = parts.bosToken;
    this.eosToken = parts.eosToken;
    this.padToken = parts.padToken;
    this.chatTemplate = parts.chatTemplate;
    this.#specialIds = new Set(parts.specials.values());
    this.#vocabulary = new Vocabulary(parts.pool, (id) => this.#specialIds.has(id));
    this.#pairs = new BytePairEncoder(this.#vocabulary);
    this.#specialPattern = anyOf([...parts.specials.keys()]);
    const stops = [...stopNames.map((name) => parts.specials.get(name)), parts.eosToken];
    this.stopTokens = [...new Set(stops.filter((id) => typeof id === 'number'))];
  }

  get vocabularySize(): number {
    return this.#vocabulary.size;
  }

  encode(text: string, { specials = false }: { specials?: boolean } = {}): number[] {
    const ids: number[] = [];
    // Lone surrogates become U+FFFD, as in every UTF-8 encoder.
    for (const part of cutLongText(text.toWellFormed())) {
      if (specials) this.#encodeWithSpecials(part, ids);
      else this.#encodeOrdinary(part, ids);
    }
    return ids;
  }

  decode(ids: Iterable<number>): string {
    const list = Array.from(ids, (id) => this.#checked(id));
    const bytes = Buffer.allocUnsafe(list.reduce((sum, id) => sum + this.#vocabulary.length(id), 0));
    let offset = 0;
    for (const id of list) offset += this.#vocabulary.copy(id, bytes, offset);
    return bytes.toString('utf8');
  }

  bytes(id: number): Uint8Array {
    return this.#vocabulary.view(this.#checked(id)).slice();
  }

  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  streamDecoder(): StreamDecoder {
    return new Utf8StreamDecoder((id) => this.#vocabulary.view(this.#checked(id)));
  }

  #checked(id: number): number {
    const vocabulary = this.#vocabulary.size;
    if (Number.isInteger(id) && id >= 0 && id < vocabulary) return id;
    throw perigeeError('TOKEN_OUT_OF_RANGE', { token: id, vocabulary });
  }

  #encodeWithSpecials(text: string, out: number[]): void {
    let at = 0;
    for (const match of text.matchAll(this.#specialPattern)) {
      this.#encodeOrdinary(text.slice(at, match.index), out);
      out.push(this.specials.get(match[0])!);
      at = match.index + match[0].length;
    }
    this.#encodeOrdinary(text.slice(at), out);
  }

  #encodeOrdinary(text: string, out: number[]): void {
    const bytes = Buffer.from(text, 'utf8');
    let offset = 0;
    for (let at = 0; at < text.length; ) {
      const end = pieceEnd(text, at);
      const length = utf8Length(text, at, end);
      this.#pairs.encode(bytes, offset, length, out);
      offset += length;
      at = end;
    }
  }
}

/** UTF-8 bytes of text[start .. end), which is well formed: each half of a surrogate pair counts for two. */
function utf8Length(text: string, start: number, end: number): number {
  let length = 0;
  for (let at = start; at < end; at++) {
    const unit = text.charCodeAt(at);
    length += unit < 0x80 ? 1 : unit < 0x800 || (unit & 0xf800) === 0xd800 ? 2 : 3;
  }
  return length;
}

/** Matches any of the names, the longest that fits. */
function anyOf(names: readonly string[]): RegExp {
  const longestFirst = names.toSorted((a, b) => b.length - a.length);
  const escaped = longestFirst.map((name) => name.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'));
  return new RegExp(escaped.length > 0 ? escaped.join('|') : '(?!)', 'gu');
}
