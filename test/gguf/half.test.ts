/** Half precision against values of the IEEE format. */
import { expect, it } from 'vitest';
import { halfBits } from '../../src/gguf/half.ts';

it.each([
  [0, 0x0000],
  [-0, 0x8000],
  [1, 0x3c00],
  [-2, 0xc000],
  [65_504, 0x7bff],
  [65_519.99, 0x7bff],
  [65_520, 0x7c00],
  [Number.POSITIVE_INFINITY, 0x7c00],
  [1 / 3, 0x3555],
  [2 ** -14, 0x0400],
  [2 ** -24, 0x0001],
  [2 ** -25, 0x0000],
  [3 * 2 ** -25, 0x0002],
  [2 ** -14 - 2 ** -25, 0x0400],
  [1 + 2 ** -11, 0x3c00],
  [1 + 3 * 2 ** -11, 0x3c02],
  [Number.NaN, 0x7e00],
])('%d is 0x%s', (value, bits) => expect(halfBits(value)).toBe(bits));
