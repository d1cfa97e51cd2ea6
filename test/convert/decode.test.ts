import { describe, expect, it } from 'vitest';
import {
  decodeBlockFp8,
  decodeInt4,
  decodeScalars,
  fp8Values,
  halfValues,
  repackInt4,
} from '../../src/convert/decode.ts';
import { type Core, coreInstance } from './core.ts';
import { randomFloats } from './support.ts';

describe('float8_e4m3fn', () => {
  // The limits that the OCP 8-bit floating point specification states for E4M3.
  it.each([
    ['zero', 0x00, 0],
    ['the smallest subnormal', 0x01, 2 ** -9],
    ['the largest subnormal', 0x07, 0.875 * 2 ** -6],
    ['the smallest normal', 0x08, 2 ** -6],
    ['one', 0x38, 1],
    ['the number after one', 0x39, 1.125],
    ['two', 0x40, 2],
    ['the largest number', 0x7e, 448],
    ['its negative', 0xfe, -448],
  ])('has %s at 0x%s', (_, byte, value) => {
    expect(fp8Values[byte]).toBe(value);
  });

  it('has NaN at both ends and nowhere else, no infinity, and rises with its magnitude bits', () => {
    for (let byte = 0; byte < 256; byte++) {
      const value = fp8Values[byte] as number;
      expect(Number.isNaN(value)).toBe((byte & 0x7f) === 0x7f);
      if (byte > 0 && byte < 0x7f) expect(value).toBeGreaterThan(fp8Values[byte - 1] as number);
      if (byte < 0x7f) expect(fp8Values[byte | 0x80]).toBe(-value);
    }
  });
});

describe('block-fp8', () => {
  it('takes the scale of each 128x128 block, partial blocks at the edges included, from any first row', () => {
    const [rows, columns] = [300, 200];
    const bytes = Uint8Array.from({ length: rows * columns }, (_, i) => (i * 37) % 0x7e);
    const scales = randomFloats(3 * 2);
    for (const [first, count] of [
      [0, 300],
      [100, 150],
      [256, 44],
    ] as const) {
      const out = new Float32Array(count * columns);
      const needed = scales.subarray(Math.floor(first / 128) * 2, Math.ceil((first + count) / 128) * 2);
      decodeBlockFp8(bytes.subarray(first * columns), columns, first, [128, 128], needed, out);
      for (const [i, value] of out.entries()) {
        const row = first + Math.floor(i / columns);
        const column = i % columns;
        const scale = scales[(row >> 7) * 2 + (column >> 7)] as number;
        if (value !== Math.fround((fp8Values[bytes[row * columns + column] as number] as number) * scale)) {
          expect.fail(`row ${row}, column ${column}: ${value}`);
        }
      }
    }
  });
});

describe('halfs and bfloat16', () => {
  it('are decoded exactly', () => {
    const view = new DataView(new ArrayBuffer(4));
    for (let bits = 0; bits < 65536; bits += 7) {
      view.setUint16(0, bits, true);
      // The platform's own half precision is the judge.
      expect(halfValues()[bits]).toEqual(
        (view as DataView & { getFloat16(at: number, little: boolean): number }).getFloat16(0, true),
      );
      const out = new Float32Array(1);
      decodeScalars('BF16', Uint8Array.of(bits & 255, bits >> 8, 0, 0), out);
      view.setUint32(0, bits * 65536, true);
      expect(out[0]).toEqual(view.getFloat32(0, true));
    }
  });
});

describe('pack-quantized INT4', () => {
  const core: Core = coreInstance();
  const packed = Uint8Array.from({ length: 4 * 64 }, (_, i) => (i * 101 + (i >> 3)) & 255);

  it('puts element i into nibble i, offset 8, in int32 words from the low end', () => {
    const words = new Uint32Array(packed.buffer);
    const out = new Float32Array(512);
    decodeInt4(packed, new Float32Array(16).fill(1), 32, out);
    for (let i = 0; i < 512; i++) expect(out[i]).toBe((((words[i >> 3] as number) >>> (4 * (i & 7))) & 15) - 8);
  });

  it('becomes Q4_0 without loss where a half can hold the scales', () => {
    const scales = Float32Array.from({ length: 16 }, (_, i) => (i + 1) / 1024);
    const blocks = new Uint8Array(16 * 18);
    expect(repackInt4(packed, scales, blocks)).toBe(0);
    const expected = new Float32Array(512);
    decodeInt4(packed, scales, 32, expected);
    expect(core.decode('Q4_0', blocks, 512)).toEqual(expected);
  });

  it('counts the scales that a half cannot hold', () => {
    const scales = Float32Array.from([0.1, 0.5, 1 / 3, 2 ** -24, 2 ** -26]);
    expect(repackInt4(packed, scales, new Uint8Array(5 * 18))).toBe(3);
  });
});
