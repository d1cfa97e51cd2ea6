/**
 * GPT-2's spelling of bytes as printable characters, in which GGUF files and tokenizer.json write their tokens: printable
 * Latin-1 characters stand for themselves, the other 68 bytes for U+0100 onward, in order (a space is Ġ, U+0120).
 */
const symbols: readonly string[] = (() => {
  let next = 0x100;
  const stands = (byte: number) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(stands(byte) ? byte : next++));
})();

/** bytesOfUnit[code unit]: the byte it stands for, or -1. */
const bytesOfUnit = new Int16Array(0x144).fill(-1);
for (const [byte, symbol] of symbols.entries()) bytesOfUnit[symbol.charCodeAt(0)] = byte;

/** The spelling of `bytes`. */
export function spellBytes(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += symbols[byte];
  return text;
}

/** Writes the bytes that `spelling` stands for and returns how many there are before the first character that is none. */
export function writeSpelled(spelling: string, into: Uint8Array, offset: number): number {
  for (let at = 0; at < spelling.length; at++) {
    const byte = bytesOfUnit[spelling.charCodeAt(at)] ?? -1;
    if (byte < 0) return at;
    into[offset + at] = byte;
  }
  return spelling.length;
}
