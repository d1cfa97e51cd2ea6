/** The writer's promises: a file is complete or absent, and every byte lands where the table says. */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { openGguf } from '../../src/gguf/open.ts';
import { type GgufOutputTensor, writeGguf } from '../../src/gguf/write.ts';
import { errorOf } from './raw.ts';

let folder = '';
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'perigee-write-'));
});
afterEach(() => rm(folder, { recursive: true }));

async function* inPieces(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

const bytesOf = (length: number, first: number) => Uint8Array.from({ length }, (_, i) => (first + i) & 255);

it('writes each tensor at its offset, whatever pieces it comes in, and reports progress to the end', async () => {
  const path = join(folder, 'out.gguf');
  const a = bytesOf(20, 1);
  const b = bytesOf(34 * 2, 100);
  const progress: number[] = [];
  let total = 0;
  await writeGguf(path, {
    metadata: [
      { key: 'flags', type: 'array', of: 'u64', value: [2 ** 40, 0] },
      { key: 'ratio', type: 'f32', value: 0.5 },
    ],
    tensors: [
      { name: 'a', type: 'F32', shape: [5], bytes: 20, data: inPieces(a, 3) },
      { name: 'b', type: 'Q8_0', shape: [32, 2], bytes: 68, data: () => [b] },
    ],
    onProgress: ({ bytesWritten, bytesTotal }) => {
      progress.push(bytesWritten);
      total = bytesTotal;
    },
  });
  const model = await openGguf(path);
  const file = await readFile(path);
  for (const [name, expected] of [
    ['a', a],
    ['b', b],
  ] as const) {
    const tensor = model.tensors.get(name);
    expect(tensor && file.subarray(tensor.offset, tensor.offset + tensor.bytes)).toEqual(Buffer.from(expected));
  }
  expect(model.metadata.get('flags')).toEqual([2 ** 40, 0]);
  expect(progress).toEqual([...progress].sort((x, y) => x - y));
  expect(file.length).toBe(total);
});

const broken: [string, GgufOutputTensor, RegExp][] = [
  [
    'too few bytes',
    { name: 't', type: 'F32', shape: [8], bytes: 32, data: [new Uint8Array(31)] },
    /produced 31 of its 32 bytes/,
  ],
  [
    'a size that its shape does not have',
    { name: 't', type: 'F32', shape: [8], bytes: 30, data: [] },
    /declares 30 bytes; .* make 32/,
  ],
  ['rows that cut a block', { name: 't', type: 'Q4_K', shape: [128, 2], bytes: 144, data: [] }, /rows of 128/],
];

it.each(broken)('refuses %s and leaves nothing behind', async (_, tensor, sentence) => {
  const error = await errorOf(() => writeGguf(join(folder, 'out.gguf'), { metadata: [], tensors: [tensor] }));
  expect(error.code).toBe('GGUF_WRITE_FAILED');
  expect(error.message).toMatch(sentence);
  expect(await readdir(folder)).toEqual([]);
});

it('keeps the old file when the new one fails', async () => {
  const path = join(folder, 'out.gguf');
  await writeGguf(path, { metadata: [], tensors: [] });
  const before = await readFile(path);
  const failing = (): Iterable<Uint8Array> => {
    throw new Error('the source broke');
  };
  await expect(
    writeGguf(path, { metadata: [], tensors: [{ name: 't', type: 'F32', shape: [1], bytes: 4, data: failing }] }),
  ).rejects.toThrow('the source broke');
  expect(await readFile(path)).toEqual(before);
});

it('says why a path cannot be written', async () => {
  const error = await errorOf(() =>
    writeGguf(join(folder, 'no', 'such', 'folder.gguf'), { metadata: [], tensors: [] }),
  );
  expect(error.message).toMatch(/could not be written: .*ENOENT/);
});
