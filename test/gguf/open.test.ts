/** Whole files, split sets and folders. */
import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gguf as secondOpinion } from '@huggingface/gguf';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openGguf } from '../../src/gguf/open.ts';
import { type GgufEntry, writeGguf } from '../../src/gguf/write.ts';
import { writeSynthetic } from '../../src/model/synthetic.ts';
import { microEntries, microTensors, outputTensors, writeMicro } from '../model/micro.ts';
import { arrayValue, entry, errorOf, ggufBytes, Type, tensor, text, u64 } from './raw.ts';

let folder = '';
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'perigee-open-'));
});
afterEach(() => rm(folder, { recursive: true }));

const refusal = async (path: string) => {
  const { code, message } = await errorOf(() => openGguf(path));
  return `${code}: ${message}`;
};

describe('one file', () => {
  it.each(['q4_k_m', 'iq4_xs', 'bf16'] as const)(
    'reads the same names, types, shapes and offsets as another reader (%s)',
    async (mix) => {
      const path = join(folder, 'model.gguf');
      await writeSynthetic(path, { shape: 'tiny', mix });
      const ours = await openGguf(path);
      const theirs = await secondOpinion(path, { allowLocalFile: true });
      const dataStart = Number(theirs.tensorDataOffset);
      expect([...ours.tensors.values()].map(({ name, shape, offset }) => ({ name, shape, offset }))).toEqual(
        theirs.tensorInfos.map(({ name, shape, offset }) => ({
          name,
          shape: shape.map(Number),
          offset: Number(offset) + dataStart,
        })),
      );
      const metadata: Record<string, unknown> = { ...theirs.metadata };
      for (const [key, value] of ours.metadata) expect(value, key).toEqual(metadata[key]);
    },
  );

  it('reads every metadata type, and integers beyond 2^53 exactly', async () => {
    const values = Buffer.concat([u64(1n), u64(2n ** 63n)]);
    const path = join(folder, 'types.gguf');
    await writeFile(
      path,
      ggufBytes({
        version: 2,
        entries: [
          entry('u8', Type.u8, Buffer.from([200])),
          entry('i8', Type.i8, Buffer.from([200])),
          entry('u16', Type.u16, Buffer.from([1, 2])),
          entry('i16', Type.i16, Buffer.from([255, 255])),
          entry('i32', Type.i32, Buffer.from([254, 255, 255, 255])),
          entry('f32', Type.f32, Buffer.from([0, 0, 192, 63])),
          entry('bool', Type.bool, Buffer.from([1])),
          entry('string', Type.string, text('Ġ你好')),
          entry('u64', Type.u64, u64(2n ** 53n + 1n)),
          entry('i64', Type.i64, u64(-3n)),
          entry('f64', Type.f64, Buffer.from(new Float64Array([0.1]).buffer)),
          entry('u64s', Type.array, arrayValue(Type.u64, 2, values)),
          entry('bools', Type.array, arrayValue(Type.bool, 2, Buffer.from([1, 0]))),
          entry('strings', Type.array, arrayValue(Type.string, 2, Buffer.concat([text(''), text('b')]))),
        ],
        tensors: [tensor('t', [4, 2])],
        data: 32,
      }),
    );
    const model = await openGguf(path);
    expect(model.version).toBe(2);
    expect(Object.fromEntries(model.metadata)).toEqual({
      u8: 200,
      i8: -56,
      u16: 513,
      i16: -1,
      i32: -2,
      f32: 1.5,
      bool: true,
      string: 'Ġ你好',
      u64: 2n ** 53n + 1n,
      i64: -3,
      f64: 0.1,
      u64s: [1, 2n ** 63n],
      bools: [true, false],
      strings: ['', 'b'],
    });
    expect(model.tensors.get('t')).toMatchObject({ type: 'F32', shape: [4, 2], bytes: 32, file: 0 });
  });

  it('reads a header of many chunks', async () => {
    const path = join(folder, 'large.gguf');
    const value = Array.from({ length: 163_840 }, (_, id) => `token ${id}`);
    await writeGguf(path, { metadata: [{ key: 'tokens', type: 'array', of: 'string', value }], tensors: [] });
    expect((await openGguf(path)).metadata.get('tokens')).toEqual(value);
  });

  it('says what is wrong with the path', async () => {
    expect(await refusal(join(folder, 'none.gguf'))).toMatch(/^MODEL_NOT_FOUND: .*nothing is there/);
    expect(await refusal(folder)).toMatch(/^MODEL_NOT_FOUND: .*no \.gguf file/);
  });
});

const names = ['m-00001-of-00003.gguf', 'm-00002-of-00003.gguf', 'm-00003-of-00003.gguf'] as const;

/** Splits the micro model in three: its metadata in the first part, its tensors dealt out. */
async function writeParts(
  change: (part: number, entries: GgufEntry[]) => GgufEntry[] = (_, entries) => entries,
  twice = false,
): Promise<string[]> {
  const third = Math.ceil(microTensors.length / 3);
  for (const [part, name] of names.entries()) {
    const own = microTensors.slice(part * third, (part + 1) * third);
    const tensors = twice && part === 2 ? [...own, ...microTensors.slice(0, 1)] : own;
    const split: GgufEntry[] = [
      { key: 'split.no', type: 'u16', value: part },
      { key: 'split.count', type: 'u16', value: 3 },
      { key: 'split.tensors.count', type: 'i32', value: microTensors.length },
    ];
    const metadata = change(part, part === 0 ? [...microEntries, ...split] : split);
    await writeGguf(join(folder, name), { metadata, tensors: outputTensors(tensors) });
  }
  return names.map((name) => join(folder, name));
}

const replace = (key: string, value: number) => (entries: GgufEntry[]) =>
  entries.map((item): GgufEntry => (item.key === key ? { key, type: 'u16', value } : item));

describe('split files', () => {
  it('open by any part and by their folder, with metadata of the first part', async () => {
    const paths = await writeParts();
    for (const path of [...paths, folder]) {
      const model = await openGguf(path);
      expect(model.files.map((file) => file.path)).toEqual(paths);
      expect([...model.tensors.keys()]).toEqual(microTensors.map(([name]) => name));
      expect([...new Set([...model.tensors.values()].map(({ file }) => file))]).toEqual([0, 1, 2]);
      expect(model.metadata.get('general.name')).toBe('micro');
    }
  });

  it('open through links, as download caches have them', async () => {
    const paths = await writeParts();
    const cache = join(folder, 'snapshot');
    await mkdir(cache);
    for (const [index, name] of names.entries()) await symlink(paths[index] ?? '', join(cache, name));
    expect((await openGguf(cache)).tensors.size).toBe(microTensors.length);
  });

  it('name exactly the parts that are missing', async () => {
    const paths = await writeParts();
    await rm(paths[1] ?? '');
    const message = await refusal(paths[0] ?? '');
    expect(message).toMatch(/^GGUF_BAD_SPLIT: .*1 of 3 parts are missing: .*m-00002-of-00003\.gguf/);
    expect(message).not.toContain('m-00003');
  });

  it('refuse parts that disagree on their number', async () => {
    const [first] = await writeParts((part, entries) => (part === 1 ? replace('split.count', 5)(entries) : entries));
    expect(await refusal(first ?? '')).toMatch(/^GGUF_BAD_SPLIT: .*split\.count 5, expected 3/);
  });

  it('refuse parts in the wrong place', async () => {
    const [first] = await writeParts((part, entries) => (part === 2 ? replace('split.no', 1)(entries) : entries));
    expect(await refusal(first ?? '')).toMatch(/^GGUF_BAD_SPLIT: .*m-00003.* says split\.no 1, expected 2/);
  });

  it('refuse a tensor that is in two parts', async () => {
    const [first] = await writeParts(undefined, true);
    expect(await refusal(first ?? '')).toMatch(
      /^GGUF_BAD_SPLIT: .*'token_embd\.weight' is in both .*00001.* and .*00003/,
    );
  });

  it('refuse a part of another model', async () => {
    const [first] = await writeParts((part, entries) =>
      part === 1 ? [...entries, { key: 'general.name', type: 'string', value: 'other' }] : entries,
    );
    expect(await refusal(first ?? '')).toMatch(/^GGUF_BAD_SPLIT: .*belongs to another model/);
  });

  it('refuse fewer tensors than the set declares', async () => {
    const [first] = await writeParts((_, entries) => replace('split.tensors.count', 99)(entries));
    expect(await refusal(first ?? '')).toMatch(/^GGUF_BAD_SPLIT: .*split\.tensors\.count says 99/);
  });

  it.each([65_535, 2])('refuse a single file that claims %i parts', async (count) => {
    const path = join(folder, 'single.gguf');
    await writeGguf(path, { metadata: [{ key: 'split.count', type: 'u16', value: count }], tensors: [] });
    expect(await refusal(path)).toMatch(/^GGUF_BAD_SPLIT: .*its name must end in/);
  });

  it('refuse a nonsensical number of parts', async () => {
    const path = join(folder, 'single.gguf');
    await writeFile(path, ggufBytes({ entries: [entry('split.count', Type.string, text('three'))] }));
    expect(await refusal(path)).toMatch(/^GGUF_BAD_SPLIT: .*split\.count three/);
  });
});

describe('folders', () => {
  it('open when they hold one model', async () => {
    await writeMicro(join(folder, 'micro.gguf'));
    await writeFile(join(folder, 'README.md'), 'a model');
    expect((await openGguf(folder)).files).toHaveLength(1);
  });

  it('ask for a choice when they hold several', async () => {
    await writeMicro(join(folder, 'micro.gguf'));
    await cp(join(folder, 'micro.gguf'), join(folder, 'other.gguf'));
    expect(await refusal(folder)).toMatch(/^MODEL_NOT_FOUND: .*2 models \(micro\.gguf, other\.gguf\)/);
  });
});
