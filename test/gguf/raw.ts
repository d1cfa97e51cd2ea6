/** GGUF bytes by hand, for files that no writer would make. */
import { expect } from 'vitest';
import { type ErrorCode, PerigeeError } from '../../src/errors.ts';
import { type GgufFile, parseGguf } from '../../src/gguf/parse.ts';

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

export function u64(value: bigint | number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)));
  return bytes;
}

export function text(value: string | Buffer, length?: bigint): Buffer {
  const bytes = Buffer.from(value as string);
  return Buffer.concat([u64(length ?? bytes.length), bytes]);
}

export const Type = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
};

/** One metadata entry. */
export function entry(key: string, type: number, value: Buffer): Buffer {
  return Buffer.concat([text(key), u32(type), value]);
}

export function arrayValue(type: number, count: bigint | number, items: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u32(type), u64(count), items]);
}

/** One row of the tensor table. */
export function tensor(
  name: string,
  shape: readonly (bigint | number)[],
  type = 0,
  offset: bigint | number = 0,
): Buffer {
  return Buffer.concat([text(name), u32(shape.length), ...shape.map(u64), u32(type), u64(offset)]);
}

export interface RawFile {
  readonly magic?: string;
  readonly version?: number;
  readonly entries?: readonly Buffer[];
  readonly tensors?: readonly Buffer[];
  readonly tensorCount?: bigint;
  readonly entryCount?: bigint;
  readonly alignment?: number;
  /** Bytes of the data section. */
  readonly data?: number;
}

export function ggufBytes(file: RawFile = {}): Buffer {
  const entries = file.entries ?? [];
  const tensors = file.tensors ?? [];
  const header = Buffer.concat([
    Buffer.from(file.magic ?? 'GGUF'),
    u32(file.version ?? 3),
    u64(file.tensorCount ?? tensors.length),
    u64(file.entryCount ?? entries.length),
    ...entries,
    ...tensors,
  ]);
  if (file.data === undefined) return header;
  const alignment = file.alignment ?? 32;
  const padding = (alignment - (header.length % alignment)) % alignment;
  return Buffer.concat([header, Buffer.alloc(padding + file.data)]);
}

/** Parses bytes in memory. A read larger than the file would be an allocation by an unchecked size: it fails the test. */
export function parseBytes(bytes: Buffer): Promise<GgufFile> {
  return parseGguf({
    name: 'test.gguf',
    bytes: bytes.length,
    read: async (offset, target) => {
      expect(target.byteLength, 'bytes asked for at once').toBeLessThanOrEqual(bytes.length);
      return bytes.copy(target, 0, offset);
    },
  });
}

/** The error that `work` fails with, which must be a coded one. */
export async function errorOf(work: () => unknown): Promise<PerigeeError> {
  try {
    await work();
  } catch (error) {
    if (error instanceof PerigeeError) return error;
    throw error;
  }
  throw new Error('expected a PerigeeError, and nothing was thrown');
}

export async function expectRefused(bytes: Buffer, code: ErrorCode, sentence: RegExp): Promise<void> {
  const error = await errorOf(() => parseBytes(bytes));
  expect({ code: error.code, exit: error.exitCode }).toEqual({ code, exit: 2 });
  expect(error.message).toMatch(sentence);
}
