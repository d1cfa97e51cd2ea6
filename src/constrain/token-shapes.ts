/** What limits on strings ask about tokens, for all of a vocabulary at once: masks are made for every token of an answer. */
import { allow, emptyMask, type TokenTable } from './masks.ts';
import { nextUtf8, utf8Start } from './utf8.ts';

export interface TokenShapes {
  /** Tokens that may stand at the start of a character. */
  readonly utf8: Int32Array;
  /** Characters that begin before the first quote. */
  readonly chars: Uint16Array;
  /** 0: no quote; 1: one, at the end; 2: otherwise. */
  readonly quotes: Uint8Array;
  readonly backslashes: Uint8Array;
  /** Bytes. */
  readonly lengths: Uint16Array;
}

const known = new WeakMap<TokenTable, TokenShapes>();

export function tokenShapes(tokens: TokenTable): TokenShapes {
  const found = known.get(tokens);
  if (found !== undefined) return found;
  const { vocabulary, tokenizer, stopTokens } = tokens;
  const shapes = {
    utf8: emptyMask(vocabulary),
    chars: new Uint16Array(vocabulary),
    quotes: new Uint8Array(vocabulary),
    backslashes: new Uint8Array(vocabulary),
    lengths: new Uint16Array(vocabulary),
  };
  for (let id = 0; id < vocabulary; id++) {
    if (tokenizer.isSpecial(id)) continue;
    const bytes = tokenizer.bytes(id);
    const quote = bytes.indexOf(0x22);
    const before = quote < 0 ? bytes : bytes.subarray(0, quote);
    let state: number | null = utf8Start;
    for (const byte of bytes) state = state === null ? null : nextUtf8(state, byte);
    if (state !== null) allow(shapes.utf8, id);
    shapes.chars[id] = before.reduce((sum, byte) => sum + ((byte & 0xc0) === 0x80 ? 0 : 1), 0);
    shapes.quotes[id] = quote < 0 ? 0 : quote === bytes.length - 1 ? 1 : 2;
    shapes.backslashes[id] = bytes.includes(0x5c) ? 1 : 0;
    shapes.lengths[id] = bytes.length;
  }
  for (const id of stopTokens) allow(shapes.utf8, id);
  known.set(tokens, shapes);
  return shapes;
}
