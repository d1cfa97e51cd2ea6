/**
 * Reads a Hugging Face checkpoint folder: one safetensors file or several with an index. Headers only; tensor bytes are read
 * later, range by range. Format: u64 header length, JSON header {name: {dtype, shape, data_offsets}}, then the data.
 */
import { type FileHandle, open, readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { perigeeError } from '../errors.ts';

/** Bytes of one element; a dtype that is not listed may be in a file but cannot be converted. */
const dtypeBytes: Readonly<Record<string, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
};

/** The format's own limit on headers (100 MB); a K2 shard's is about 2 MB. */
const maxHeaderBytes = 100_000_000;

export interface SourceTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly file: string;
  /** From the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

/** Parses JSON of a checkpoint file into an object; anything else is CONVERT_BAD_JSON. */
export function parseJsonObject(file: string, text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw perigeeError('CONVERT_BAD_JSON', { file, why: (cause as Error).message }, { cause });
  }
  if (!isObject(value)) throw perigeeError('CONVERT_BAD_JSON', { file, why: 'it is not an object' });
  return value;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Every tensor of the checkpoint in `folder`, by name, from the headers of its shards. */
export async function readTensorTable(folder: string): Promise<Map<string, SourceTensor>> {
  const table = new Map<string, SourceTensor>();
  for (const shard of await listShards(folder)) {
    const file = join(folder, shard);
    for (const tensor of await readHeader(file)) {
      if (table.has(tensor.name)) {
        throw perigeeError('CONVERT_BAD_SAFETENSORS', { file, why: `tensor '${tensor.name}' is in another shard too` });
      }
      table.set(tensor.name, tensor);
    }
  }
  return table;
}

async function listShards(folder: string): Promise<string[]> {
  const present = new Set((await readdir(folder)).filter((name) => name.endsWith('.safetensors')));
  if (present.has('model.safetensors')) return ['model.safetensors'];
  const indexFile = join(folder, 'model.safetensors.index.json');
  const text = await readFile(indexFile, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') throw perigeeError('CONVERT_NO_WEIGHTS', { folder });
    throw cause;
  });
  const map = parseJsonObject(indexFile, text).weight_map;
  if (!isObject(map)) throw perigeeError('CONVERT_BAD_JSON', { file: indexFile, why: 'it has no weight_map' });
  const shards = [...new Set(Object.values(map))].map(String).sort();
  for (const shard of shards) {
    if (!present.has(shard)) throw perigeeError('CONVERT_SHARD_MISSING', { folder, shard });
  }
  return shards;
}

/** The tensors one safetensors file declares, each checked to lie inside the file. */
export async function readHeader(file: string): Promise<SourceTensor[]> {
  const fail = (why: string) => perigeeError('CONVERT_BAD_SAFETENSORS', { file, why });
  const fileBytes = (await stat(file)).size;
  if (fileBytes < 8) throw fail(`it has ${fileBytes} bytes, fewer than the 8 of a header length`);
  const handle = await open(file);
  try {
    const headerBytes = Number((await readExactly(handle, 0, 8)).readBigUInt64LE());
    if (headerBytes > maxHeaderBytes) throw fail(`its header claims ${headerBytes} bytes, more than the format allows`);
    if (8 + headerBytes > fileBytes) throw fail(`its header claims ${headerBytes} bytes, the file has ${fileBytes}`);
    const header = parseJsonObject(file, (await readExactly(handle, 8, headerBytes)).toString('utf8'));
    const dataStart = 8 + headerBytes;
    return Object.entries(header)
      .filter(([name]) => name !== '__metadata__')
      .map(([name, value]) => parseEntry(file, name, value, dataStart, fileBytes));
  } finally {
    await handle.close();
  }
}

function parseEntry(file: string, name: string, value: unknown, dataStart: number, fileBytes: number): SourceTensor {
  const fail = (why: string) => perigeeError('CONVERT_BAD_SAFETENSORS', { file, why: `tensor '${name}' ${why}` });
  if (!isObject(value) || typeof value.dtype !== 'string') throw fail('has no dtype');
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isSizes(shape)) throw fail('has no proper shape');
  if (!isSizes(offsets) || offsets.length !== 2) throw fail('has no proper data_offsets');
  const [begin, end] = offsets as [number, number];
  if (begin > end || dataStart + end > fileBytes) {
    throw fail(`lies at bytes ${begin}..${end} of the data, which has ${fileBytes - dataStart}`);
  }
  const elements = shape.reduce((product, size) => product * size, 1);
  const size = dtypeBytes[dtype];
  if (size !== undefined && elements * size !== end - begin) {
    throw fail(`has ${end - begin} bytes, its shape [${shape.join(', ')}] of ${dtype} needs ${elements * size}`);
  }
  return { name, dtype, shape, file, offset: dataStart + begin, bytes: end - begin };
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

async function readExactly(handle: FileHandle, position: number, bytes: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(bytes);
  let done = 0;
  while (done < bytes) {
    const { bytesRead } = await handle.read(buffer, done, bytes - done, position + done);
    if (bytesRead === 0) throw new Error(`unexpected end of file after ${position + done} bytes`);
    done += bytesRead;
  }
  return buffer;
}
