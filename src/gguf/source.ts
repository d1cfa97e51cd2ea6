/** Where header bytes come from, and a cursor that reads them in order without trusting any size it is told. */
import type { FileHandle } from 'node:fs/promises';
import { perigeeError } from '../errors.ts';

/** Something with a known length whose bytes can be fetched by range. */
export interface ByteSource {
  readonly name: string;
  readonly bytes: number;
  /** Fills `target` from `offset`; the range lies within `bytes`. Resolves to the bytes that were really there. */
  read(offset: number, target: Uint8Array): Promise<number>;
}

export function fileSource(name: string, bytes: number, file: FileHandle): ByteSource {
  return {
    name,
    bytes,
    read: async (offset, target) => (await file.read(target, 0, target.byteLength, offset)).bytesRead,
  };
}

/** A K2 header is 6 MB, nearly all vocabulary: a handful of reads. */
const chunkBytes = 1 << 20;

/** No header is this long; a damaged length in a file of 600 GB must not make us read that far. */
const headerLimit = 256 << 20;

/**
 * Little-endian reader over a window of the source. Callers ask `has(n)` and `await fill(n)` when it is false; the getters
 * after that are synchronous, so that a quarter of a million strings do not cost a promise each.
 */
export class Cursor {
  readonly source: ByteSource;
  #window: Buffer = Buffer.alloc(0);
  /** Position of the window's first byte in the source, and of the next byte in the window. */
  #base = 0;
  #at = 0;

  constructor(source: ByteSource) {
    this.source = source;
  }

  get position(): number {
    return this.#base + this.#at;
  }

  get remaining(): number {
    return this.source.bytes - this.position;
  }

  has(bytes: number): boolean {
    return this.#at + bytes <= this.#window.length;
  }

  /** Throws GGUF_TRUNCATED unless `bytes` more bytes exist. Nothing is allocated before this check. */
  require(bytes: number | bigint, what: string): void {
    if (bytes > this.remaining) {
      const need = bytes === Number.POSITIVE_INFINITY ? 'more than 2^53' : `${bytes}`;
      throw perigeeError('GGUF_TRUNCATED', { file: this.source.name, what, need, have: `${this.remaining}` });
    }
  }

  /** Makes the next `bytes` bytes available to the getters. */
  async fill(bytes: number, what: string): Promise<void> {
    if (this.has(bytes)) return;
    this.require(bytes, what);
    if (this.position + bytes > headerLimit) {
      const problem = `${what} would make it longer than ${headerLimit} bytes`;
      throw perigeeError('GGUF_BAD_METADATA', { file: this.source.name, what: problem });
    }
    const kept = this.#window.subarray(this.#at);
    const next = Buffer.allocUnsafe(Math.min(Math.max(bytes, chunkBytes), this.remaining));
    kept.copy(next);
    this.#base += this.#at;
    this.#at = 0;
    let filled = kept.length;
    while (filled < next.length) {
      const count = await this.source.read(this.#base + filled, next.subarray(filled));
      if (count === 0) break;
      filled += count;
    }
    this.#window = next.subarray(0, filled);
    // The file shrank between stat and read.
    if (!this.has(bytes)) {
      throw perigeeError('GGUF_TRUNCATED', { file: this.source.name, what, need: `${bytes}`, have: `${filled}` });
    }
  }

  u8(): number {
    return this.#window.readUInt8(this.#advance(1));
  }

  u32(): number {
    return this.#window.readUInt32LE(this.#advance(4));
  }

  u64(): bigint {
    return this.#window.readBigUInt64LE(this.#advance(8));
  }

  /** `u64()` as a number where that is exact, Infinity beyond 2^53: only for sizes that are compared before use. */
  length(): number {
    const at = this.#advance(8);
    const high = this.#window.readUInt32LE(at + 4);
    return high >= 0x200000 ? Number.POSITIVE_INFINITY : high * 0x1_0000_0000 + this.#window.readUInt32LE(at);
  }

  text(bytes: number): string {
    const at = this.#advance(bytes);
    return this.#window.toString('utf8', at, at + bytes);
  }

  /** The next `bytes` bytes; valid until the next `fill`. */
  view(bytes: number): DataView {
    const at = this.#advance(bytes);
    return new DataView(this.#window.buffer, this.#window.byteOffset + at, bytes);
  }

  /** Steps back over the last `bytes` bytes, which the window still holds. */
  rewind(bytes: number): void {
    this.#at -= bytes;
  }

  #advance(bytes: number): number {
    const at = this.#at;
    this.#at += bytes;
    return at;
  }
}
