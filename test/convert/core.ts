/** The built engine's encoders and decoders, as tests call them. */
import { readFileSync } from 'node:fs';
import { EncoderInstance } from '../../src/convert/encoder-instance.ts';
import { alignUp, rowBytes } from '../../src/gguf/sizes.ts';
import { GgmlType, type GgmlTypeName } from '../../src/gguf/types.ts';
import { coreFile } from '../../src/runtime/assets.ts';
import { firstStackTop, instantiate, sharedMemory } from '../../wasm/core.ts';

export interface Core {
  encode(type: GgmlTypeName, values: Float32Array, columns: number): Uint8Array;
  decode(type: GgmlTypeName, bytes: Uint8Array, columns: number): Float32Array;
}

/** An encoder as `convert` uses it and, apart from it, the engine's own reading of each format. */
export function coreInstance(build: 'simd128' | 'relaxed' = 'simd128'): Core {
  const module = new WebAssembly.Module(readFileSync(coreFile(build)));
  const encoder = new EncoderInstance(module);
  const memory = sharedMemory(64 << 20);
  const core = instantiate(module, memory);
  const base = alignUp(firstStackTop(core), 64);
  return {
    encode(type, values, columns) {
      const rows = values.length / columns;
      const out = new Uint8Array(rows * rowBytes(type, columns));
      encoder.floats(values.length).set(values);
      encoder.encode(GgmlType[type], rows, columns, out);
      return out;
    },
    decode(type, bytes, columns) {
      const rows = bytes.length / rowBytes(type, columns);
      const target = base + alignUp(bytes.length, 64);
      new Uint8Array(memory.buffer, base, bytes.length).set(bytes);
      core.dequantize_rows(GgmlType[type], base, rows, columns, target);
      return new Float32Array(memory.buffer, target, rows * columns).slice();
    },
  };
}
