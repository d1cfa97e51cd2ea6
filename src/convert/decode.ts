/** Source encodings to float32: the number formats checkpoints use, and one block-scaled matrix format per publisher. */

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
  const halfBits = new DataView(out.buffer, out.byteOffset, out.byteLength);
  let rounded = 0;
  for (let block = 0; block < scales.length; block += 1) {
    const scale = scales[block] as number;
    const bits = toHalf(scale);
    if (halfValues()[bits] !== scale) rounded += 1;
    halfBits.setUint16(block * 18, bits, true);
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

const floatCell = new Float32Array(1);
const bitsCell = new Uint32Array(floatCell.buffer);

/** The nearest half to `value`, ties to even; beyond the largest half, infinity. */
export function toHalf(value: number): number {
  floatCell[0] = value;
  const bits = bitsCell[0] as number;
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  // 2^-24 is a half's last place below 2^-14: scaling by it turns rounding to an integer into rounding to a half.
  if (magnitude < 0x38800000) return sign | roundEven(Math.abs(value) * 2 ** 24);
  const half = ((magnitude - 0x38000000) >>> 13) + (roundsUp(magnitude) ? 1 : 0);
  return sign | Math.min(half, 0x7c00);
}

function roundsUp(magnitude: number): boolean {
  const rest = magnitude & 0x1fff;
  return rest > 0x1000 || (rest === 0x1000 && (magnitude & 0x2000) !== 0);
}

function roundEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
