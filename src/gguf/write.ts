/**
 * Writes GGUF v3: metadata, tensor table, then tensor bytes as they are produced, so a model of any size passes through a
 * few megabytes of memory. The file appears under its name only when it is complete.
 */
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { perigeeError } from '../errors.ts';
import { alignUp, tensorBytes } from './sizes.ts';
import { blockShapes, GgmlType, type GgmlTypeName } from './types.ts';

/** Type ids of metadata values, as the format numbers them. */
const valueTypes = { u8: 0, u16: 2, u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9, u64: 10 } as const;
type NumberType = 'u8' | 'u16' | 'u32' | 'i32' | 'f32' | 'u64';
const numberBytes: Record<NumberType, number> = { u8: 1, u16: 2, u32: 4, i32: 4, f32: 4, u64: 8 };

/** One metadata entry with the type it is stored as. */
export type GgufEntry =
  | { readonly key: string; readonly type: NumberType; readonly value: number }
  | { readonly key: string; readonly type: 'bool'; readonly value: boolean }
  | { readonly key: string; readonly type: 'string'; readonly value: string }
  | { readonly key: string; readonly type: 'array'; readonly of: NumberType; readonly value: readonly number[] }
  | { readonly key: string; readonly type: 'array'; readonly of: 'string'; readonly value: readonly string[] };

type Chunks = Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

export interface GgufOutputTensor {
  readonly name: string;
  readonly type: GgmlTypeName;
  /** ggml order: shape[0] is contiguous. */
  readonly shape: readonly number[];
  readonly bytes: number;
  /** The tensor's bytes in order, or a function that starts producing them when their turn comes. */
  readonly data: Chunks | (() => Chunks);
}

export interface GgufOutput {
  readonly metadata: readonly GgufEntry[];
  readonly tensors: readonly GgufOutputTensor[];
  readonly onProgress?: (progress: {
    readonly bytesWritten: number;
    readonly bytesTotal: number;
    readonly tensor: string;
  }) => void;
}

/** What every reader assumes when general.alignment is absent. */
const alignment = 32;

/** A growing little-endian buffer for the header. */
class HeaderWriter {
  #buffer = Buffer.allocUnsafe(1 << 16);
  #length = 0;

  #room(bytes: number): number {
    const at = this.#length;
    this.#length += bytes;
    if (this.#length > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#length, this.#buffer.length * 2));
      this.#buffer.copy(larger, 0, 0, at);
      this.#buffer = larger;
    }
    return at;
  }

  number(type: NumberType, value: number): void {
    // Room first: it may replace the buffer.
    const at = this.#room(numberBytes[type]);
    if (type === 'u8') this.#buffer.writeUInt8(value, at);
    else if (type === 'u16') this.#buffer.writeUInt16LE(value, at);
    else if (type === 'u32') this.#buffer.writeUInt32LE(value, at);
    else if (type === 'i32') this.#buffer.writeInt32LE(value, at);
    else if (type === 'f32') this.#buffer.writeFloatLE(value, at);
    else this.#buffer.writeBigUInt64LE(BigInt(value), at);
  }

  string(text: string): void {
    const bytes = Buffer.byteLength(text);
    this.number('u64', bytes);
    const at = this.#room(bytes);
    this.#buffer.write(text, at, 'utf8');
  }

  raw(text: string): void {
    const at = this.#room(text.length);
    this.#buffer.write(text, at, 'latin1');
  }

  /** The header, zero-padded to `alignment`. */
  finish(): Uint8Array {
    const end = alignUp(this.#length, alignment);
    const from = this.#room(end - this.#length);
    this.#buffer.fill(0, from, end);
    return this.#buffer.subarray(0, end);
  }
}

function writeEntry(header: HeaderWriter, entry: GgufEntry): void {
  header.string(entry.key);
  header.number('u32', valueTypes[entry.type]);
  if (entry.type === 'string') header.string(entry.value);
  else if (entry.type === 'bool') header.number('u8', entry.value ? 1 : 0);
  else if (entry.type !== 'array') header.number(entry.type, entry.value);
  else {
    header.number('u32', valueTypes[entry.of]);
    header.number('u64', entry.value.length);
    if (entry.of === 'string') for (const text of entry.value) header.string(text);
    else for (const value of entry.value) header.number(entry.of, value);
  }
}

/** The bytes before the data section, and where in that section each tensor starts. */
function layOut(output: GgufOutput): { header: Uint8Array; offsets: number[]; end: number } {
  const header = new HeaderWriter();
  header.raw('GGUF');
  header.number('u32', 3);
  header.number('u64', output.tensors.length);
  header.number('u64', output.metadata.length);
  for (const entry of output.metadata) writeEntry(header, entry);
  const offsets: number[] = [];
  let end = 0;
  for (const tensor of output.tensors) {
    header.string(tensor.name);
    header.number('u32', tensor.shape.length);
    for (const dimension of tensor.shape) header.number('u64', dimension);
    header.number('u32', GgmlType[tensor.type]);
    header.number('u64', end);
    offsets.push(end);
    end = alignUp(end + tensor.bytes, alignment);
  }
  return { header: header.finish(), offsets, end };
}

function checkTensor(path: string, tensor: GgufOutputTensor): void {
  const fail = (why: string) => perigeeError('GGUF_WRITE_FAILED', { path, why: `tensor '${tensor.name}' ${why}` });
  if ((tensor.shape[0] ?? 0) % blockShapes[tensor.type].elements !== 0) {
    throw fail(`has rows of ${tensor.shape[0]}, not a multiple of ${tensor.type}'s block`);
  }
  const expected = tensorBytes(tensor.type, tensor.shape);
  if (tensor.bytes !== expected) throw fail(`declares ${tensor.bytes} bytes; its type and shape make ${expected}`);
}

async function writeAll(file: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let done = 0; done < chunk.byteLength; ) {
    done += (await file.write(chunk, done, chunk.byteLength - done)).bytesWritten;
  }
}

async function writeBody(file: FileHandle, path: string, output: GgufOutput): Promise<void> {
  const { header, offsets, end } = layOut(output);
  const bytesTotal = header.byteLength + end;
  await writeAll(file, header);
  for (const [index, tensor] of output.tensors.entries()) {
    let written = 0;
    for await (const chunk of typeof tensor.data === 'function' ? tensor.data() : tensor.data) {
      await writeAll(file, chunk);
      written += chunk.byteLength;
      const bytesWritten = header.byteLength + (offsets[index] ?? 0) + written;
      output.onProgress?.({ bytesWritten, bytesTotal, tensor: tensor.name });
    }
    if (written !== tensor.bytes) {
      const why = `tensor '${tensor.name}' produced ${written} of its ${tensor.bytes} bytes`;
      throw perigeeError('GGUF_WRITE_FAILED', { path, why });
    }
    await writeAll(file, new Uint8Array(alignUp(written, alignment) - written));
  }
}

/** Writes a whole GGUF file; `path` is replaced only after everything, including the disk's cache, is written. */
export async function writeGguf(path: string, output: GgufOutput): Promise<void> {
  for (const tensor of output.tensors) checkTensor(path, tensor);
  const partial = `${path}.partial`;
  let file: FileHandle | undefined;
  try {
    file = await open(partial, 'w');
    await writeBody(file, path, output);
    await file.sync();
    await file.close();
    await rename(partial, path);
  } catch (cause) {
    await file?.close().catch(() => undefined);
    await rm(partial, { force: true });
    if (cause instanceof Error && 'syscall' in cause) {
      throw perigeeError('GGUF_WRITE_FAILED', { path, why: cause.message }, { cause });
    }
    throw cause;
  }
}
