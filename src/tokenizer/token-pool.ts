/** Collects the bytes of a vocabulary's tokens, in id order, with the bounds that keep a hostile file harmless. */
import { perigeeError } from '../errors.ts';

/** Twice the longest token of Kimi K2; a longer one means a damaged or hostile file. */
const longestToken = 512;
/** Six times Kimi K2's vocabulary; ranks must stay below 2^22 to share a double with a position (byte-pairs.ts). */
const mostTokens = 2 ** 20;

export class TokenPool {
  /** The file the tokens come from, for error sentences. */
  readonly file: string;
  /** offsets[id] to offsets[id + 1]: where the token's bytes lie in `bytes`. */
  readonly offsets: number[] = [0];
  #bytes = Buffer.allocUnsafe(2 ** 20);

  constructor(file: string) {
    this.file = file;
  }

  get size(): number {
    return this.offsets.length - 1;
  }

  get bytes(): Buffer {
    return this.#bytes.subarray(0, this.offsets.at(-1));
  }

  /** Adds the next token: `length` bytes, which `write` puts at `offset`; it returns how many it could make sense of. */
  add(length: number, write: (bytes: Buffer, offset: number) => number): void {
    const id = this.size;
    const offset = this.offsets[id]!;
    if (id >= mostTokens) throw this.error(`it has more than ${mostTokens} tokens`);
    if (!(length >= 1 && length <= longestToken)) {
      throw this.error(`token ${id} is ${length} bytes long; 1 to ${longestToken} are possible`);
    }
    if (offset + length > this.#bytes.length) this.#bytes = Buffer.concat([this.#bytes], this.#bytes.length * 2);
    if (write(this.#bytes, offset) !== length) throw this.error(`the spelling of token ${id} is damaged`);
    this.offsets.push(offset + length);
  }

  /** Adds the next token as plain text: the name of a control token. */
  addName(name: string): void {
    this.add(Buffer.byteLength(name), (bytes, offset) => bytes.write(name, offset));
  }

  error(what: string): Error {
    return perigeeError('VOCABULARY_BAD', { file: this.file, what });
  }
}
