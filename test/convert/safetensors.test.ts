import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readTensorTable } from '../../src/convert/safetensors.ts';
import { f32, newFolder, safetensors, writeCheckpoint } from './support.ts';

/** A safetensors file with `header` as its JSON text and `data` bytes behind it. */
function file(header: string, data: number, claimed = Buffer.byteLength(header)): Buffer {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(claimed));
  return Buffer.concat([length, Buffer.from(header), Buffer.alloc(data)]);
}

const one = (fields: object) => JSON.stringify({ w: { dtype: 'F32', shape: [2], data_offsets: [0, 8], ...fields } });

async function open(bytes: Uint8Array) {
  const folder = await newFolder();
  await writeFile(join(folder, 'model.safetensors'), bytes);
  return readTensorTable(folder);
}

describe('a safetensors header', () => {
  it('gives each tensor its place in the file', async () => {
    const table = await open(file(one({}), 8));
    expect(table.get('w')).toMatchObject({ dtype: 'F32', shape: [2], offset: 8 + one({}).length, bytes: 8 });
  });

  it.each([
    ['a file shorter than a header length', Buffer.alloc(5), 'CONVERT_BAD_SAFETENSORS', /5 bytes/],
    ['a header longer than the file', file('{}', 0, 1000), 'CONVERT_BAD_SAFETENSORS', /claims 1000 bytes/],
    [
      'an absurd header length',
      file('{}', 0, Number.MAX_SAFE_INTEGER),
      'CONVERT_BAD_SAFETENSORS',
      /more than the format allows/,
    ],
    ['a header that is not JSON', file('{"w":', 8), 'CONVERT_BAD_JSON', /JSON/],
    ['a header that is not an object', file('[1]', 8), 'CONVERT_BAD_JSON', /not an object/],
    ['an entry that is not an object', file('{"w":3}', 8), 'CONVERT_BAD_SAFETENSORS', /'w' has no dtype/],
    ['a missing dtype', file(one({ dtype: undefined }), 8), 'CONVERT_BAD_SAFETENSORS', /'w' has no dtype/],
    ['a negative dimension', file(one({ shape: [-2] }), 8), 'CONVERT_BAD_SAFETENSORS', /shape/],
    ['a fractional dimension', file(one({ shape: [1.5] }), 8), 'CONVERT_BAD_SAFETENSORS', /shape/],
    ['one offset', file(one({ data_offsets: [0] }), 8), 'CONVERT_BAD_SAFETENSORS', /data_offsets/],
    ['offsets in the wrong order', file(one({ data_offsets: [8, 0] }), 8), 'CONVERT_BAD_SAFETENSORS', /8\.\.0/],
    ['offsets beyond the file', file(one({}), 7), 'CONVERT_BAD_SAFETENSORS', /which has 7/],
    ['a shape that needs other bytes', file(one({ shape: [3] }), 8), 'CONVERT_BAD_SAFETENSORS', /needs 12/],
    [
      'a shape whose product overflows',
      file(one({ shape: [2 ** 30, 2 ** 30] }), 8),
      'CONVERT_BAD_SAFETENSORS',
      /needs/,
    ],
  ])('is refused with %s', async (_, bytes, code, message) => {
    await expect(open(bytes)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });
});

describe('a checkpoint folder', () => {
  const tensors = { a: f32([2]), b: f32([3]), c: f32([1]) };

  it('is read across its shards', async () => {
    const table = await readTensorTable(await writeCheckpoint({}, tensors, 2));
    expect([...table.keys()].sort()).toEqual(['a', 'b', 'c']);
    expect(new Set([...table.values()].map((tensor) => tensor.file)).size).toBe(2);
  });

  it('without weights is refused', async () => {
    await expect(readTensorTable(await newFolder())).rejects.toMatchObject({ code: 'CONVERT_NO_WEIGHTS' });
  });

  it('that lacks a shard is refused with its name', async () => {
    const folder = await newFolder();
    await writeFile(
      join(folder, 'model.safetensors.index.json'),
      '{"weight_map":{"a":"model-00002-of-00002.safetensors"}}',
    );
    await expect(readTensorTable(folder)).rejects.toMatchObject({
      code: 'CONVERT_SHARD_MISSING',
      message: expect.stringContaining('model-00002-of-00002.safetensors'),
    });
  });

  it('with one tensor in two shards is refused', async () => {
    const folder = await newFolder();
    for (const name of ['x.safetensors', 'y.safetensors']) await writeFile(join(folder, name), safetensors(tensors));
    await writeFile(
      join(folder, 'model.safetensors.index.json'),
      '{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}',
    );
    await expect(readTensorTable(folder)).rejects.toMatchObject({ code: 'CONVERT_BAD_SAFETENSORS' });
  });

  it('whose index names a file outside the folder is refused', async () => {
    const folder = await newFolder();
    await writeFile(join(folder, 'model.safetensors.index.json'), '{"weight_map":{"a":"../other.safetensors"}}');
    await expect(readTensorTable(folder)).rejects.toMatchObject({ code: 'CONVERT_SHARD_MISSING' });
  });
});
