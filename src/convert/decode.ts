/** Source encodings to float32: the number formats checkpoints use, and one block-scaled matrix format per publisher. */

import { halfBits } from '../gguf/half.ts';

export type ScalarDtype = 'F32' | 'F16' | 'BF16';

/** float8_e4m3fn: sign, 4 exponent bits (bias 7), 3 fraction bits; no infinities, 0x7f and 0xff are NaN. */
export const fp8Values: Float32Array = Float32Array.from({ length: 256 }, (_, byte) => {
  const exponent = (byte >> 3) & 15;
  const fraction = byte & 7;
  const sign = byte & 0x80 ? -1 : 1;
  if (exponent === 15 && fraction === 7) return Number.NaN;
  return sign * (exponent === 0 ? fraction * 2 ** -9 : (8 + fraction) * 2 ** (exponent - 10));
});

let halfTable: Float32Array | undefined;

/** IEEE binary16, all 65,536 of them; made on first use. */
export function halfValues(): Float32Array {
  halfTable ??= Float32Array.from({ length: 65536 }, (_, bits) => {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const sign = bits & 0x8000 ? -1 : 1;
    if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
    return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
  });
  return halfTable;
}

export const scalarBytes: Readonly<Record<ScalarDtype, number>> = { F32: 4, F16: 2, BF16: 2 };

/** Decodes `out.length` numbers; `bytes` starts at a multiple of 4 in its buffer. */
export function decodeScalars(dtype: ScalarDtype, bytes: Uint8Array, out: Float32Array): void {
  if (dtype === 'F32') {
    out.set(new Float32Array(bytes.buffer, bytes.byteOffset, out.length));
    return;
  }
  const source = new Uint16Array(bytes.buffer, bytes.byteOffset, out.length);
  if (dtype === 'BF16') {
    const bits = new Uint32Array(out.buffer, out.byteOffset, out.length);
    for (let i = 0; i < source.length; i += 1) bits[i] = (source[i] as number) << 16;
    return;
  }
  const values = halfValues();
  for (let i = 0; i < source.length; i += 1) out[i] = values[source[i] as number] as number;
}

/**
 * Block-fp8 rows `firstRow`.. of a matrix: value = fp8 * scale of its block. `scales` holds the rows of scales from block row
 * floor(firstRow / blockRows) on; blocks at the edges may be partial.
 */
export function decodeBlockFp8(
  bytes: Uint8Array,
  columns: number,
  firstRow: number,
  block: readonly [number, number],
  scales: Float32Array,
  out: Float32Array,
): void {
  const [blockRows, blockColumns] = block;
  const scaleColumns = Math.ceil(columns / blockColumns);
  const firstBlock = Math.floor(firstRow / blockRows);
  for (let at = 0, row = firstRow; at < out.length; at += columns, row += 1) {
    const scaleRow = (Math.floor(row / blockRows) - firstBlock) * scaleColumns;
    for (let column = 0; column < columns; column += 1) {
      const scale = scales[scaleRow + Math.floor(column / blockColumns)] as number;
      out[at + column] = (fp8Values[bytes[at + column] as number] as number) * scale;
    }
  }
}

/** Pack-quantized INT4: element i of a row is nibble i of its bytes, low nibble first, offset 8, times its group's scale. */
export function decodeInt4(bytes: Uint8Array, scales: Float32Array, group: number, out: Float32Array): void {
  for (let i = 0; i < out.length; i += 1) {
    const nibble = ((bytes[i >> 1] as number) >> ((i & 1) * 4)) & 15;
    out[i] = (nibble - 8) * (scales[Math.floor(i / group)] as number);
  }
}

/**
 * INT4 groups of 32 to Q4_0 blocks, which hold the same 16 steps: the nibbles move, the scale becomes a half. Returns how
 * many scales a half could not hold exactly (then the block is as near as Q4_0 gets).
 */
export function repackInt4(bytes: Uint8Array, scales: Float32Array, out: Uint8Array): number {
  const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
  let rounded = 0;
  for (let block = 0; block < scales.length; block += 1) {
    const scale = scales[block] as number;
    const bits = halfBits(scale);
    if (halfValues()[bits] !== scale) rounded += 1;
    view.setUint16(block * 18, bits, true);
    // Byte j of a Q4_0 block pairs elements j and j + 16; here byte k pairs elements 2k and 2k + 1.
    for (let j = 0; j < 16; j += 1) {
      const shift = (j & 1) * 4;
      const low = ((bytes[block * 16 + (j >> 1)] as number) >> shift) & 15;
      const high = ((bytes[block * 16 + 8 + (j >> 1)] as number) >> shift) & 15;
      out[block * 18 + 2 + j] = low | (high << 4);
    }
  }
  return rounded;
}
