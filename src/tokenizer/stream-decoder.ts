import type { StreamDecoder } from './types.ts';

/**
 * Decodes the bytes of ids as they come. The platform's decoder does what is wanted: it holds back an incomplete character
 * and replaces bytes by U+FFFD once they can no longer become one. A byte order mark is text here.
 */
export class Utf8StreamDecoder implements StreamDecoder {
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  readonly #bytesOf: (id: number) => Uint8Array;

  constructor(bytesOf: (id: number) => Uint8Array) {
    this.#bytesOf = bytesOf;
  }

  push(id: number): string {
    return this.#decoder.decode(this.#bytesOf(id), { stream: true });
  }

  end(): string {
    return this.#decoder.decode();
  }
}
