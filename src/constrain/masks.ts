/** Sets of token ids as bits, and the tokens that spell a text. */
import { spellBytes } from '../gguf/byte-symbols.ts';
import type { Tokenizer } from '../tokenizer/types.ts';

export function emptyMask(vocabulary: number): Int32Array {
  return new Int32Array(Math.ceil(vocabulary / 32));
}

export function allow(mask: Int32Array, id: number): void {
  mask[id >> 5]! |= 1 << (id & 31);
}

export function forbid(mask: Int32Array, id: number): void {
  mask[id >> 5]! &= ~(1 << (id & 31));
}

export function allows(mask: Int32Array, id: number): boolean {
  return ((mask[id >> 5]! >>> (id & 31)) & 1) === 1;
}

/** The control tokens of calls. */
export interface Markers {
  readonly section: number;
  readonly sectionEnd: number;
  readonly call: number;
  readonly argument: number;
  readonly callEnd: number;
}

/** What constraints need to know of a tokenizer. */
export class TokenTable {
  readonly vocabulary: number;
  readonly stopTokens: readonly number[];
  /** Null: the vocabulary cannot say calls. */
  readonly markers: Markers | null;
  /** For models that open their reasoning themselves, by their template; undefined: this one does not. */
  readonly think: number | undefined;
  readonly thinkEnd: number | undefined;
  readonly tokenizer: Tokenizer;
  /** Ids by GPT-2 spelling of their bytes. */
  readonly #ids = new Map<string, number>();

  constructor(tokenizer: Tokenizer) {
    this.tokenizer = tokenizer;
    this.vocabulary = tokenizer.vocabularySize;
    this.stopTokens = tokenizer.stopTokens;
    for (let id = 0; id < this.vocabulary; id++) {
      if (!tokenizer.isSpecial(id)) this.#ids.set(spellBytes(tokenizer.bytes(id)), id);
    }
    const { specials } = tokenizer;
    this.thinkEnd = specials.get('</think>');
    const thinks = this.thinkEnd !== undefined && tokenizer.chatTemplate?.includes('</think>');
    this.think = thinks ? specials.get('<think>') : undefined;
    const [section, sectionEnd, call, argument, callEnd] = [
      '<|tool_calls_section_begin|>',
      '<|tool_calls_section_end|>',
      '<|tool_call_begin|>',
      '<|tool_call_argument_begin|>',
      '<|tool_call_end|>',
    ].map((name) => specials.get(name));
    const all = section !== undefined && sectionEnd !== undefined && call !== undefined && argument !== undefined;
    this.markers = all && callEnd !== undefined ? { section, sectionEnd, call, argument, callEnd } : null;
  }

  /** The ordinary tokens that `text` may begin with. */
  *beginning(text: string): Generator<number, void, void> {
    const spelled = spellBytes(Buffer.from(text));
    for (let length = 1; length <= spelled.length; length++) {
      const id = this.#ids.get(spelled.slice(0, length));
      if (id !== undefined) yield id;
    }
  }

  /** Whether `text` begins with the bytes of `id`, and what is left of it then. */
  after(text: string, id: number): string | null {
    const [whole, token] = [Buffer.from(text), this.tokenizer.bytes(id)];
    if (token.length > whole.length || !whole.subarray(0, token.length).equals(token)) return null;
    return whole.subarray(token.length).toString();
  }
}
