/** Sizes that follow from a type and a shape. */
import { blockShapes, type GgmlTypeName } from './types.ts';

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, dimension) => product * dimension, 1);
}

/** Bytes of one row of `elements`, a multiple of the type's block. */
export function rowBytes(type: GgmlTypeName, elements: number): number {
  const block = blockShapes[type];
  return (elements / block.elements) * block.bytes;
}

/** Bytes of a whole tensor; shape[0], the contiguous dimension, must be a multiple of the type's block. */
export function tensorBytes(type: GgmlTypeName, shape: readonly number[]): number {
  const block = blockShapes[type];
  return (elementCount(shape) / block.elements) * block.bytes;
}

/** `value` rounded up to a multiple of `alignment`. */
export function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

/** Bytes for people: 1.2 GB, 345 MB (decimal units, as disks and memory bandwidths are quoted). */
export function formatBytes(bytes: number): string {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'] as const;
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
}
