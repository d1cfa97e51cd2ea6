/** The header of one GGUF file: metadata and tensor table, with every count and size checked before it is used. */
import { perigeeError } from '../errors.ts';
import { alignUp, tensorBytes } from './sizes.ts';
import { type ByteSource, Cursor } from './source.ts';
import { blockShapes, GgmlType, type GgmlTypeName, type GgufScalar, type GgufTensor, type GgufValue } from './types.ts';

/** What one file holds. Tensor offsets count from the start of the file; `file` is left 0 until the parts are joined. */
export interface GgufFile {
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: readonly GgufTensor[];
}

/**
 * Bounds beyond what any model needs (the largest vocabularies have 260,000 entries, K2 has 1,096 tensors), so that a damaged
 * count in a file of 600 GB cannot fill memory although that many bytes do remain. source.ts bounds the header as a whole.
 */
const limits = { keyBytes: 65_535, arrayItems: 1 << 24, entries: 1 << 16, tensors: 1 << 20, nameBytes: 63 };

/** Fewest bytes an entry can take: key length, one letter, type, one byte. And a tensor: name, one dimension, type, offset. */
const smallestEntry = 8 + 1 + 4 + 1;
const smallestTensor = 8 + 1 + 4 + 8 + 4 + 8;

const typeIds = {
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

interface NumberReader {
  readonly bytes: number;
  readonly get: (view: DataView, at: number) => number | bigint;
}

/** 64-bit integers become numbers where that is exact. */
function narrow(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

const numberReaders = new Map<number, NumberReader>([
  [typeIds.u8, { bytes: 1, get: (view, at) => view.getUint8(at) }],
  [typeIds.i8, { bytes: 1, get: (view, at) => view.getInt8(at) }],
  [typeIds.u16, { bytes: 2, get: (view, at) => view.getUint16(at, true) }],
  [typeIds.i16, { bytes: 2, get: (view, at) => view.getInt16(at, true) }],
  [typeIds.u32, { bytes: 4, get: (view, at) => view.getUint32(at, true) }],
  [typeIds.i32, { bytes: 4, get: (view, at) => view.getInt32(at, true) }],
  [typeIds.f32, { bytes: 4, get: (view, at) => view.getFloat32(at, true) }],
  [typeIds.u64, { bytes: 8, get: (view, at) => narrow(view.getBigUint64(at, true)) }],
  [typeIds.i64, { bytes: 8, get: (view, at) => narrow(view.getBigInt64(at, true)) }],
  [typeIds.f64, { bytes: 8, get: (view, at) => view.getFloat64(at, true) }],
]);

/** Numeric id to name for the types we read, and names of ggml's others, so that an error can say what it met. */
const readableTypes = new Map<number, GgmlTypeName>(
  Object.entries(GgmlType).map(([name, id]) => [id, name as GgmlTypeName]),
);
const otherTypes = new Map<number, string>([
  [9, 'Q8_1'],
  [15, 'Q8_K'],
  [16, 'IQ2_XXS'],
  [17, 'IQ2_XS'],
  [18, 'IQ3_XXS'],
  [19, 'IQ1_S'],
  [21, 'IQ3_S'],
  [22, 'IQ2_S'],
  [24, 'I8'],
  [25, 'I16'],
  [26, 'I32'],
  [27, 'I64'],
  [28, 'F64'],
  [29, 'IQ1_M'],
  [34, 'TQ1_0'],
  [35, 'TQ2_0'],
  [39, 'MXFP4'],
]);

/** Untrusted text in an error: quoted, control characters escaped, at most 80 characters. */
function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 77)}...` : text);
}

class HeaderParser {
  readonly #cursor: Cursor;

  constructor(source: ByteSource) {
    this.#cursor = new Cursor(source);
  }

  async parse(): Promise<GgufFile> {
    const version = await this.#preamble();
    const tensorCount = await this.#count('tensors', smallestTensor, limits.tensors);
    const entryCount = await this.#count('metadata entries', smallestEntry, limits.entries);
    const metadata = new Map<string, GgufValue>();
    for (let i = 0; i < entryCount; i++) await this.#entry(metadata);
    const alignment = this.#alignment(metadata);
    const infos: GgufTensor[] = [];
    for (let i = 0; i < tensorCount; i++) infos.push(await this.#tensor(alignment));
    const dataStart = alignUp(this.#cursor.position, alignment);
    const tensors = infos.map((tensor) => ({ ...tensor, offset: tensor.offset + dataStart }));
    this.#checkPlaces(tensors);
    return { version, metadata, tensors };
  }

  #bad(what: string): Error {
    return perigeeError('GGUF_BAD_METADATA', { file: this.#cursor.source.name, what });
  }

  #badTensor(tensor: string, what: string): Error {
    return perigeeError('GGUF_BAD_TENSOR', { file: this.#cursor.source.name, tensor: quote(tensor), what });
  }

  async #preamble(): Promise<number> {
    const cursor = this.#cursor;
    const file = cursor.source.name;
    const start = Math.min(cursor.remaining, 32);
    await cursor.fill(start, 'the magic');
    const view = cursor.view(start);
    const text = Buffer.from(view.buffer, view.byteOffset, start).toString('latin1');
    if (!text.startsWith('GGUF')) {
      let hint = 'Check the path and fetch the file again.';
      if (start === 0) hint = 'The file is empty; fetch it again.';
      if (text.startsWith('version https://git-lfs')) {
        hint = "It is a Git LFS pointer, not the model itself: run 'git lfs pull' or download the file.";
      }
      throw perigeeError('GGUF_BAD_MAGIC', { file, found: start === 0 ? 'nothing' : quote(text.slice(0, 4)), hint });
    }
    if (start < 24) cursor.require(24 - start, 'the header');
    const version = view.getUint32(4, true);
    if (version !== 2 && version !== 3) {
      const swapped = view.getUint32(4, false);
      const hint =
        swapped === 2 || swapped === 3
          ? 'The file is big-endian; convert it on a little-endian machine.'
          : 'Convert the model again with a current converter.';
      throw perigeeError('GGUF_BAD_VERSION', { file, version: `${version}`, hint });
    }
    cursor.rewind(start - 8);
    return version;
  }

  /** A count of things that take at least `smallest` bytes each, so it cannot exceed what remains of the file. */
  async #count(what: string, smallest: number, most: number): Promise<number> {
    await this.#cursor.fill(8, `the number of ${what}`);
    const count = this.#cursor.u64();
    this.#cursor.require(count * BigInt(smallest), `a list of ${count} ${what}`);
    if (count > most) throw this.#bad(`it declares ${count} ${what}, more than the ${most} any model has`);
    return Number(count);
  }

  async #string(what: string, most: number): Promise<string> {
    await this.#cursor.fill(8, what);
    const length = this.#cursor.length();
    if (length > most) throw this.#bad(`${what} is ${length} bytes long, more than ${most}`);
    await this.#cursor.fill(length, what);
    return this.#cursor.text(length);
  }

  async #entry(metadata: Map<string, GgufValue>): Promise<void> {
    const key = await this.#string('a metadata key', limits.keyBytes);
    if (key === '') throw this.#bad('a metadata key is empty');
    if (metadata.has(key)) throw this.#bad(`the key ${quote(key)} appears twice`);
    await this.#cursor.fill(4, `the type of ${quote(key)}`);
    const type = this.#cursor.u32();
    metadata.set(key, type === typeIds.array ? await this.#array(key) : await this.#scalar(key, type));
  }

  async #scalar(key: string, type: number): Promise<GgufScalar> {
    const what = `the value of ${quote(key)}`;
    if (type === typeIds.string) return this.#string(what, Number.POSITIVE_INFINITY);
    if (type === typeIds.bool) {
      await this.#cursor.fill(1, what);
      return this.#bool(this.#cursor.u8(), key);
    }
    const reader = numberReaders.get(type);
    if (!reader) throw this.#bad(`${quote(key)} has the unknown value type ${type}`);
    await this.#cursor.fill(reader.bytes, what);
    return reader.get(this.#cursor.view(reader.bytes), 0);
  }

  #bool(byte: number, key: string): boolean {
    if (byte > 1) throw this.#bad(`${quote(key)} is a boolean with the value ${byte}`);
    return byte === 1;
  }

  async #array(key: string): Promise<readonly GgufScalar[]> {
    const cursor = this.#cursor;
    const what = `the array ${quote(key)}`;
    await cursor.fill(12, what);
    const type = cursor.u32();
    const count = cursor.u64();
    if (type === typeIds.array) throw this.#bad(`${what} holds arrays, which no model needs`);
    const reader = numberReaders.get(type);
    const size = type === typeIds.string ? 8 : type === typeIds.bool ? 1 : reader?.bytes;
    if (size === undefined) throw this.#bad(`${what} holds values of the unknown type ${type}`);
    cursor.require(count * BigInt(size), what);
    if (count > limits.arrayItems) throw this.#bad(`${what} has ${count} items, more than ${limits.arrayItems}`);
    if (type === typeIds.string) return this.#strings(what, Number(count));
    return this.#numbers(key, Number(count), reader ?? null);
  }

  /** The vocabulary's loop: no call that waits unless the window is used up. */
  async #strings(what: string, count: number): Promise<readonly string[]> {
    const cursor = this.#cursor;
    const strings: string[] = [];
    for (let i = 0; i < count; i++) {
      if (!cursor.has(8)) await cursor.fill(8, what);
      const length = cursor.length();
      if (!cursor.has(length)) await cursor.fill(length, what);
      strings.push(cursor.text(length));
    }
    return strings;
  }

  /** Numbers of one type, or booleans when there is no reader, in pieces that fit the window. */
  async #numbers(key: string, count: number, reader: NumberReader | null): Promise<readonly GgufScalar[]> {
    const values: GgufScalar[] = [];
    const size = reader?.bytes ?? 1;
    const piece = 65_536;
    for (let done = 0; done < count; done += piece) {
      const items = Math.min(piece, count - done);
      await this.#cursor.fill(items * size, `the array ${quote(key)}`);
      const view = this.#cursor.view(items * size);
      for (let i = 0; i < items; i++) {
        values.push(reader ? reader.get(view, i * size) : this.#bool(view.getUint8(i), key));
      }
    }
    return values;
  }

  #alignment(metadata: ReadonlyMap<string, GgufValue>): number {
    const value = metadata.get('general.alignment') ?? 32;
    const valid = typeof value === 'number' && value >= 1 && value <= 65_536 && Number.isInteger(Math.log2(value));
    if (!valid) {
      const found = typeof value === 'string' ? quote(value) : `${value}`;
      throw this.#bad(`general.alignment is ${found}, expected a power of two up to 65536`);
    }
    return value;
  }

  async #tensor(alignment: number): Promise<GgufTensor> {
    const cursor = this.#cursor;
    const name = await this.#string('a tensor name', limits.keyBytes);
    if (name.length > limits.nameBytes || !/^[\w.-]+$/.test(name)) {
      throw this.#badTensor(name, `is not a valid name (1 to ${limits.nameBytes} letters, digits, '.', '_', '-')`);
    }
    await cursor.fill(4, `the shape of ${quote(name)}`);
    const rank = cursor.u32();
    if (rank < 1 || rank > 4) throw this.#badTensor(name, `has ${rank} dimensions, expected 1 to 4`);
    await cursor.fill(8 * rank + 12, `the shape of ${quote(name)}`);
    const dimensions = Array.from({ length: rank }, () => cursor.u64());
    const typeId = cursor.u32();
    const offset = cursor.u64();
    const type = readableTypes.get(typeId);
    if (!type) {
      const found = otherTypes.get(typeId) ?? `the unknown type ${typeId}`;
      const supported = [...readableTypes.values()].join(' ');
      throw perigeeError('GGUF_UNSUPPORTED_TYPE', {
        file: cursor.source.name,
        tensor: quote(name),
        type: found,
        supported,
      });
    }
    const shape = this.#shape(name, dimensions, type);
    if (offset % BigInt(alignment) !== 0n)
      throw this.#badTensor(name, `starts at ${offset}, not a multiple of ${alignment}`);
    if (offset > cursor.source.bytes)
      throw this.#badTensor(name, `starts at ${offset}; the file has ${cursor.source.bytes} bytes`);
    return { name, type, shape, file: 0, offset: Number(offset), bytes: tensorBytes(type, shape) };
  }

  /** Dimensions as numbers, once their product is known to be no more than the file can hold. */
  #shape(name: string, dimensions: readonly bigint[], type: GgmlTypeName): number[] {
    const block = blockShapes[type];
    if (dimensions.some((dimension) => dimension === 0n)) throw this.#badTensor(name, 'has a dimension of 0');
    if ((dimensions[0] ?? 0n) % BigInt(block.elements) !== 0n) {
      throw this.#badTensor(name, `has rows of ${dimensions[0]}, not a multiple of ${type}'s ${block.elements}`);
    }
    const bytes =
      (dimensions.reduce((product, dimension) => product * dimension, 1n) / BigInt(block.elements)) *
      BigInt(block.bytes);
    if (bytes > BigInt(this.#cursor.source.bytes)) {
      throw this.#badTensor(
        name,
        `takes ${bytes} bytes by its shape [${dimensions.join(', ')}]; the file has ${this.#cursor.source.bytes}`,
      );
    }
    return dimensions.map(Number);
  }

  /** Every tensor inside the file, none twice, none on another's bytes. */
  #checkPlaces(tensors: readonly GgufTensor[]): void {
    const names = new Set<string>();
    for (const tensor of tensors) {
      if (names.has(tensor.name)) throw this.#badTensor(tensor.name, 'appears twice');
      names.add(tensor.name);
      if (tensor.offset + tensor.bytes > this.#cursor.source.bytes) {
        const end = tensor.offset + tensor.bytes;
        throw this.#badTensor(tensor.name, `ends at byte ${end}; the file has ${this.#cursor.source.bytes}`);
      }
    }
    const sorted = tensors.toSorted((a, b) => a.offset - b.offset);
    for (const [index, tensor] of sorted.entries()) {
      const next = sorted[index + 1];
      if (next && tensor.offset + tensor.bytes > next.offset) {
        throw this.#badTensor(tensor.name, `overlaps ${quote(next.name)}`);
      }
    }
  }
}

/** Reads the header of one GGUF file; tensor data is never touched. */
export function parseGguf(source: ByteSource): Promise<GgufFile> {
  return new HeaderParser(source).parse();
}
