/** One instance of the engine's WASM module on a memory of its own, used for its row encoders alone. */

import { type CoreExports, firstStackTop, instantiate, sharedMemory } from '../../wasm/core.ts';
import { alignUp } from '../gguf/sizes.ts';

const pageBytes = 65536;

export class EncoderInstance {
  readonly #memory = sharedMemory(16 * pageBytes);
  readonly #core: CoreExports;
  /** The work area, input then output, starts behind the module's data and stack. */
  readonly #base: number;

  constructor(module: WebAssembly.Module) {
    this.#core = instantiate(module, this.#memory);
    this.#base = alignUp(firstStackTop(this.#core), 64);
  }

  /** Where the next `encode` finds its input: `count` floats, uninitialized. */
  floats(count: number): Float32Array {
    // No encoding is larger than its floats, so twice the input is room for both.
    const missing = this.#base + count * 8 - this.#memory.buffer.byteLength;
    if (missing > 0) this.#memory.grow(Math.ceil(missing / pageBytes));
    return new Float32Array(this.#memory.buffer, this.#base, count);
  }

  /** Encodes the floats of the last `floats` call as rows of `type` into `out`. */
  encode(type: number, rows: number, columns: number, out: Uint8Array): void {
    const target = this.#base + rows * columns * 4;
    if (this.#core.encode_rows(type, this.#base, rows, columns, target) !== 1)
      throw new Error(`no encoder for type ${type}`);
    out.set(new Uint8Array(this.#memory.buffer, target, out.byteLength));
  }
}
