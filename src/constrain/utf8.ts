/**
 * UTF-8 byte by byte, strictly: no overlong forms, no surrogates, nothing beyond U+10FFFF (Unicode, table 3-7). A state says
 * how many bytes are still to come and the range of the next: count << 16 | least << 8 | most.
 */

/** Between characters. */
export const utf8Start = 0;

const state = (count: number, least: number, most: number) => (count << 16) | (least << 8) | most;

/** The state after `byte`, or null if it cannot come here. */
export function nextUtf8(now: number, byte: number): number | null {
  if (now !== utf8Start) {
    if (byte < ((now >> 8) & 0xff) || byte > (now & 0xff)) return null;
    return now >> 16 === 1 ? utf8Start : state((now >> 16) - 1, 0x80, 0xbf);
  }
  if (byte < 0x80) return utf8Start;
  if (byte >= 0xc2 && byte <= 0xdf) return state(1, 0x80, 0xbf);
  if (byte >= 0xe0 && byte <= 0xef) return state(2, byte === 0xe0 ? 0xa0 : 0x80, byte === 0xed ? 0x9f : 0xbf);
  if (byte >= 0xf0 && byte <= 0xf4) return state(3, byte === 0xf0 ? 0x90 : 0x80, byte === 0xf4 ? 0x8f : 0xbf);
  return null;
}
