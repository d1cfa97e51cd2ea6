/** An independent reading of the weight formats in float64, element by element, from the GGUF block layouts. */
import { TYPES, type TypeName } from './harness.ts';

const IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

export function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** One block: bytes, and element i's value. */
type Reader = (b: Uint8Array, i: number) => number;

const half = (b: Uint8Array, at: number) => halfToNumber((b[at] as number) | ((b[at + 1] as number) << 8));
const byte = (b: Uint8Array, at: number) => b[at] as number;
const signed = (b: Uint8Array, at: number) => (byte(b, at) << 24) >> 24;
const bit = (b: Uint8Array, at: number, n: number) => (byte(b, at + (n >> 3)) >> (n & 7)) & 1;
/** Nibble i of a run of 32: low nibbles of 16 bytes, then high ones. */
const nibble32 = (b: Uint8Array, at: number, i: number) => (byte(b, at + (i % 16)) >> (i < 16 ? 0 : 4)) & 15;
/** Nibble i of a run of 64: low nibbles of 32 bytes, then high ones. */
const nibble64 = (b: Uint8Array, at: number, i: number) => (byte(b, at + (i % 32)) >> (i < 32 ? 0 : 4)) & 15;

/** Q4_K and Q5_K: [scale, min] of sub-block s, from the 12 bytes at 4. */
function scaleAndMin(b: Uint8Array, s: number): [number, number] {
  const p = (i: number) => byte(b, 4 + i);
  if (s < 4) return [p(s) & 63, p(s + 4) & 63];
  return [(p(s + 4) & 15) | ((p(s - 4) >> 6) << 4), (p(s + 4) >> 4) | ((p(s) >> 6) << 4)];
}

/** Q3_K: scale s of 16 by the word formulation. */
function scaleQ3(b: Uint8Array, s: number): number {
  const view = new DataView(b.buffer, b.byteOffset + 96, 12);
  const [a0, a1, a2] = [0, 4, 8].map((at) => view.getUint32(at, true)) as [number, number, number];
  const words = [
    (a0 & 0x0f0f0f0f) | ((a2 & 0x03030303) << 4),
    (a1 & 0x0f0f0f0f) | (((a2 >>> 2) & 0x03030303) << 4),
    ((a0 >>> 4) & 0x0f0f0f0f) | (((a2 >>> 4) & 0x03030303) << 4),
    ((a1 >>> 4) & 0x0f0f0f0f) | (((a2 >>> 6) & 0x03030303) << 4),
  ];
  return (((words[s >> 2] as number) >>> (8 * (s & 3))) & 255) - 32;
}

/** Element i of a 256-block with 2-bit planes: [byte of the half's 32, shift]. */
const plane = (i: number): [number, number] => [32 * (i >> 7) + (i & 31), 2 * ((i >> 5) & 3)];

const READERS: Record<TypeName, Reader> = {
  F32: (b) => new DataView(b.buffer, b.byteOffset, 4).getFloat32(0, true),
  F16: (b) => half(b, 0),
  BF16: (b) => new DataView(Uint8Array.of(0, 0, byte(b, 0), byte(b, 1)).buffer).getFloat32(0, true),
  Q4_0: (b, i) => half(b, 0) * (nibble32(b, 2, i) - 8),
  Q4_1: (b, i) => half(b, 0) * nibble32(b, 4, i) + half(b, 2),
  Q5_0: (b, i) => half(b, 0) * (nibble32(b, 6, i) + 16 * bit(b, 2, i) - 16),
  Q5_1: (b, i) => half(b, 0) * (nibble32(b, 8, i) + 16 * bit(b, 4, i)) + half(b, 2),
  Q8_0: (b, i) => half(b, 0) * signed(b, 2 + i),
  IQ4_NL: (b, i) => half(b, 0) * (IQ4[nibble32(b, 2, i)] as number),
  Q2_K: (b, i) => {
    const [at, shift] = plane(i);
    const scales = byte(b, i >> 4);
    return half(b, 80) * (scales & 15) * ((byte(b, 16 + at) >> shift) & 3) - half(b, 82) * (scales >> 4);
  },
  Q3_K: (b, i) => {
    const [at, shift] = plane(i);
    const third = (byte(b, i & 31) >> (4 * (i >> 7) + ((i >> 5) & 3))) & 1;
    return half(b, 108) * scaleQ3(b, i >> 4) * (((byte(b, 32 + at) >> shift) & 3) - (third ? 0 : 4));
  },
  Q4_K: (b, i) => {
    const [scale, min] = scaleAndMin(b, i >> 5);
    return half(b, 0) * scale * nibble64(b, 16 + 32 * (i >> 6), i & 63) - half(b, 2) * min;
  },
  Q5_K: (b, i) => {
    const [scale, min] = scaleAndMin(b, i >> 5);
    const fifth = (byte(b, 16 + (i & 31)) >> (i >> 5)) & 1;
    return half(b, 0) * scale * (nibble64(b, 48 + 32 * (i >> 6), i & 63) + 16 * fifth) - half(b, 2) * min;
  },
  Q6_K: (b, i) => {
    const [at, shift] = plane(i);
    const low = nibble64(b, 64 * (i >> 7) + (i & 32), (i & 31) + (i & 64 ? 32 : 0));
    return half(b, 208) * signed(b, 192 + (i >> 4)) * ((low | (((byte(b, 128 + at) >> shift) & 3) << 4)) - 32);
  },
  IQ4_XS: (b, i) => {
    const s = i >> 5;
    const high = ((byte(b, 2) | (byte(b, 3) << 8)) >> (2 * s)) & 3;
    const scale = ((byte(b, 4 + (s >> 1)) >> (4 * (s & 1))) & 15) | (high << 4);
    return half(b, 0) * (scale - 32) * (IQ4[nibble32(b, 8 + 16 * s, i & 31)] as number);
  },
};

/** Weights as numbers. */
export function decode(type: TypeName, w: Uint8Array): Float64Array {
  const [, elements, size] = TYPES[type];
  const out = new Float64Array((w.length / size) * elements);
  for (let i = 0; i < out.length; i++) {
    const block = Math.floor(i / elements);
    out[i] = READERS[type](w.subarray(block * size, (block + 1) * size), i % elements);
  }
  return out;
}
