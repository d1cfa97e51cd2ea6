/** One instance of the engine's WASM module, used for its row encoders alone. */

const pageBytes = 65536;
/** What the module's own static data and stack may need before the first grow. */
const initialPages = 512;

interface EncoderExports {
  readonly encode_rows: (type: number, source: number, rows: number, columns: number, out: number) => void;
  readonly _initialize?: () => void;
}

export class EncoderInstance {
  readonly #memory = new WebAssembly.Memory({ initial: initialPages, maximum: pageBytes, shared: true });
  readonly #exports: EncoderExports;
  /** The work area: memory grown behind everything the module itself uses. */
  readonly #base = initialPages * pageBytes;
  #bytes = 0;

  constructor(module: WebAssembly.Module) {
    const imports: Record<string, Record<string, WebAssembly.ImportValue>> = {};
    for (const { module: space, name, kind } of WebAssembly.Module.imports(module)) {
      const entry = kind === 'memory' ? this.#memory : notHere(name);
      imports[space] = { ...imports[space], [name]: entry };
    }
    this.#exports = new WebAssembly.Instance(module, imports).exports as unknown as EncoderExports;
    this.#exports._initialize?.();
  }

  /** Where the next `encode` finds its input: `count` floats, uninitialized. */
  floats(count: number): Float32Array {
    // Output is never larger than the input, so twice the input is room for both.
    const missing = count * 8 - this.#bytes;
    if (missing > 0) {
      const pages = Math.ceil(missing / pageBytes);
      this.#memory.grow(pages);
      this.#bytes += pages * pageBytes;
    }
    return new Float32Array(this.#memory.buffer, this.#base, count);
  }

  /** Encodes the floats of the last `floats` call as rows of `type` into `out`. */
  encode(type: number, rows: number, columns: number, out: Uint8Array): void {
    const target = this.#base + rows * columns * 4;
    this.#exports.encode_rows(type, this.#base, rows, columns, target);
    out.set(new Uint8Array(this.#memory.buffer, target, out.byteLength));
  }
}

/** The module's other doors lead to hosts that an encoder does not have. */
function notHere(name: string): () => never {
  return () => {
    throw new Error(`the encoder called ${name}`);
  };
}
