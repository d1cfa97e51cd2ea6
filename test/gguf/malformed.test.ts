/** Damaged and hostile files: each is one coded error, and no size is believed before it is checked. */
import { describe, expect, it } from 'vitest';
import {
  arrayValue,
  entry,
  errorOf,
  expectRefused,
  ggufBytes,
  parseBytes,
  Type,
  tensor,
  text,
  u32,
  u64,
} from './raw.ts';

const huge = [2n ** 64n - 1n, 2n ** 63n, 2n ** 40n, 2n ** 32n, 10n ** 9n];

describe('magic and version', () => {
  it.each([
    ['another magic', Buffer.from('FUGG____________________'), /starts with "FUGG"/],
    ['an empty file', Buffer.alloc(0), /starts with nothing.*empty/],
    ['three bytes', Buffer.from('GGU'), /starts with "GGU"/],
    ['binary noise', Buffer.alloc(64, 0xff), /not a GGUF file/],
  ])('refuses %s', (_, bytes, sentence) => expectRefused(bytes, 'GGUF_BAD_MAGIC', sentence));

  it('recognises a Git LFS pointer', () =>
    expectRefused(
      Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
      'GGUF_BAD_MAGIC',
      /git lfs pull/,
    ));

  it('refuses a file that ends after the magic', () => expectRefused(Buffer.from('GGUF'), 'GGUF_TRUNCATED', /header/));

  it.each([0, 1, 4])('refuses version %i', (version) =>
    expectRefused(ggufBytes({ version }), 'GGUF_BAD_VERSION', new RegExp(`version ${version};`)),
  );

  it('says that a big-endian file is one', () =>
    expectRefused(ggufBytes({ version: 0x03000000 }), 'GGUF_BAD_VERSION', /big-endian/));
});

describe('counts and lengths', () => {
  it.each(huge)('refuses %i tensors in a small file', (tensorCount) =>
    expectRefused(ggufBytes({ tensorCount, data: 100 }), 'GGUF_TRUNCATED', new RegExp(`${tensorCount} tensors`)),
  );

  it.each(huge)('refuses %i metadata entries in a small file', (entryCount) =>
    expectRefused(ggufBytes({ entryCount, data: 100 }), 'GGUF_TRUNCATED', new RegExp(`${entryCount} metadata entries`)),
  );

  const lengths = [2n ** 64n - 1n, 2n ** 63n, 2n ** 53n, 2n ** 30n + 1n];
  it.each(lengths)('refuses a key of %i bytes', (length) =>
    expectRefused(
      ggufBytes({ entries: [text('general.name', length)], data: 64 }),
      'GGUF_BAD_METADATA',
      /metadata key is .* bytes long/,
    ),
  );

  it.each([...lengths, 101n])('refuses a string of %i bytes where 100 remain', (length) =>
    expectRefused(
      ggufBytes({ entries: [entry('general.name', Type.string, Buffer.concat([u64(length), Buffer.alloc(100)]))] }),
      'GGUF_TRUNCATED',
      /value of "general.name" needs .* bytes, 100 are left/,
    ),
  );

  it('refuses a key that is one byte longer than the file', () =>
    expectRefused(ggufBytes({ entries: [text('general.name', 13n)] }), 'GGUF_TRUNCATED', /metadata key/));

  it.each([
    ['2^61 items of 8 bytes', Type.u64, 2n ** 61n],
    ['2^64 - 1 bytes', Type.u8, 2n ** 64n - 1n],
    ['2^30 empty strings', Type.string, 2n ** 30n],
    ['2^40 booleans', Type.bool, 2n ** 40n],
  ])('refuses an array of %s', (_, type, count) =>
    expectRefused(
      ggufBytes({ entries: [entry('a.b', Type.array, arrayValue(type, count))], data: 64 }),
      'GGUF_TRUNCATED',
      /array "a.b"/,
    ),
  );

  it('refuses an array whose items are there but too many for any vocabulary', async () => {
    const count = 2 ** 24 + 1;
    const bytes = ggufBytes({ entries: [entry('a.b', Type.array, arrayValue(Type.u8, count, Buffer.alloc(count)))] });
    await expectRefused(bytes, 'GGUF_BAD_METADATA', /16777217 items/);
  });

  it('refuses a string inside an array that runs past the end', () =>
    expectRefused(
      ggufBytes({
        entries: [entry('a.b', Type.array, arrayValue(Type.string, 2, Buffer.concat([text('x'), u64(2n ** 62n)])))],
      }),
      'GGUF_TRUNCATED',
      /more than 2\^53 bytes/,
    ));
});

describe('metadata', () => {
  it('refuses arrays of arrays, however deep', async () => {
    let nested = arrayValue(Type.u8, 0);
    for (let depth = 0; depth < 10_000; depth++)
      nested = depth % 1000 === 0 ? arrayValue(Type.array, 1, nested) : nested;
    await expectRefused(
      ggufBytes({ entries: [entry('a.b', Type.array, nested)] }),
      'GGUF_BAD_METADATA',
      /holds arrays/,
    );
  });

  it('does not follow ten thousand levels of array headers', () => {
    const levels = Buffer.concat(Array.from({ length: 10_000 }, () => arrayValue(Type.array, 1)));
    return expectRefused(
      ggufBytes({ entries: [entry('a.b', Type.array, levels)] }),
      'GGUF_BAD_METADATA',
      /holds arrays/,
    );
  });

  it.each([13, 255, -1])('refuses the value type %i', (type) =>
    expectRefused(
      ggufBytes({ entries: [entry('a.b', type, Buffer.alloc(16))] }),
      'GGUF_BAD_METADATA',
      /unknown value type/,
    ),
  );

  it.each([13, 255, -1])('refuses arrays of type %i', (type) =>
    expectRefused(
      ggufBytes({ entries: [entry('a.b', Type.array, arrayValue(type, 1, Buffer.alloc(16)))] }),
      'GGUF_BAD_METADATA',
      /unknown type/,
    ),
  );

  it('refuses a boolean that is neither', () =>
    expectRefused(
      ggufBytes({ entries: [entry('a.b', Type.bool, Buffer.from([7]))] }),
      'GGUF_BAD_METADATA',
      /boolean with the value 7/,
    ));

  it('refuses a key that appears twice', () => {
    const twice = entry('general.name', Type.u8, Buffer.from([1]));
    return expectRefused(ggufBytes({ entries: [twice, twice] }), 'GGUF_BAD_METADATA', /"general.name" appears twice/);
  });

  it('refuses an empty key', () =>
    expectRefused(
      ggufBytes({ entries: [entry('', Type.u8, Buffer.from([1])), Buffer.alloc(16)] }),
      'GGUF_BAD_METADATA',
      /key is empty/,
    ));

  it.each([
    ['0', Type.u32, u32(0)],
    ['13', Type.u32, u32(13)],
    ['2^31', Type.u32, u32(2 ** 31)],
    ['-32', Type.i32, u32(-32)],
    ['a string', Type.string, text('32')],
    ['a list', Type.array, arrayValue(Type.u8, 1, Buffer.from([32]))],
    ['a fraction', Type.f64, Buffer.from(new Float64Array([32.5]).buffer)],
    ['NaN', Type.f32, Buffer.from(new Float32Array([Number.NaN]).buffer)],
  ])('refuses an alignment of %s', (_, type, value) =>
    expectRefused(
      ggufBytes({ entries: [entry('general.alignment', type, value)] }),
      'GGUF_BAD_METADATA',
      /general.alignment/,
    ),
  );
});

describe('the tensor table', () => {
  const refuse = (table: Buffer[], sentence: RegExp, data = 4096) =>
    expectRefused(ggufBytes({ tensors: table, data }), 'GGUF_BAD_TENSOR', sentence);

  it.each([0, 5, 2 ** 32 - 1])('refuses %i dimensions', (rank) =>
    refuse([Buffer.concat([text('t'), u32(rank), Buffer.alloc(64)])], /dimensions, expected 1 to 4/),
  );

  it('refuses a dimension of 0', () => refuse([tensor('t', [32, 0])], /dimension of 0/));

  it.each([
    ['2^63', [2n ** 63n]],
    ['-1', [-1n, 1n]],
    ['2^40 x 2^40', [2n ** 40n, 2n ** 40n]],
    ['2^62 floats, whose bytes wrap around', [2n ** 62n]],
    ['2^32 x 2^32, whose product wraps to 0', [2n ** 32n, 2n ** 32n]],
    ['one more than the file holds', [4096n / 4n + 64n]],
  ])('refuses a shape of %s', (_, shape) => refuse([tensor('t', shape)], /takes .* bytes by its shape|ends at byte/));

  it('refuses tensors whose padded sizes together wrap around', () =>
    refuse([tensor('a', [0x1fffffffffffffe0n]), tensor('b', [0x1fffffffffffffe0n])], /takes .* bytes by its shape/));

  it.each([
    ['Q4_0 rows of 48', 2, 48],
    ['Q4_K rows of 128', 12, 128],
    ['Q8_0 rows of 1', 8, 1],
  ])('refuses %s', (_, type, columns) => refuse([tensor('t', [columns, 4], type)], /not a multiple/));

  it.each([
    [-1, /unknown type 4294967295/],
    [255, /unknown type 255/],
    [4, /unknown type 4/],
    [5, /unknown type 5/],
    [16, /IQ2_XXS/],
    [24, /I8/],
    [27, /I64/],
    [39, /MXFP4/],
  ])('refuses the tensor type %i and names the tensor', async (type, name) => {
    const bytes = ggufBytes({ tensors: [tensor('blk.0.ffn_up.weight', [2n ** 61n], type)], data: 64 });
    await expectRefused(bytes, 'GGUF_UNSUPPORTED_TYPE', name);
    await expectRefused(bytes, 'GGUF_UNSUPPORTED_TYPE', /blk\.0\.ffn_up\.weight/);
  });

  it.each([
    ['is not aligned', 33n, /not a multiple of 32/],
    ['is near 2^64', 2n ** 64n - 32n, /starts at/],
    ['is past the end', 8192n, /starts at|ends at/],
    ['leaves too few bytes', 4096n - 96n, /ends at byte/],
  ])('refuses an offset that %s', (_, offset, sentence) => refuse([tensor('t', [32], 0, offset)], sentence));

  it('refuses overlapping tensors', () => refuse([tensor('b', [64], 0, 128), tensor('a', [64])], /"a" overlaps "b"/));

  it('refuses a name that appears twice', () =>
    refuse([tensor('t', [8]), tensor('t', [8], 0, 32)], /"t" appears twice/));

  it.each([
    ['64 bytes', 'n'.repeat(64)],
    ['nothing', ''],
    ['a NUL', 'blk.0\0.weight'],
    ['a path', '../../etc/passwd'],
    ['terminal colours', '\u001b[31mred'],
    ['a line break', 'a\nb'],
  ])('refuses a name of %s, and prints it harmlessly', async (_, name) => {
    const error = await errorOf(() => parseBytes(ggufBytes({ tensors: [tensor(name, [8])], data: 64 })));
    expect(error.code).toBe('GGUF_BAD_TENSOR');
    expect(error.message).not.toMatch(/[\u0000-\u001f]/);
  });

  it('accepts the largest alignment and tensors that just fit', async () => {
    const entries = [entry('general.alignment', Type.u32, u32(65_536))];
    const bytes = ggufBytes({ entries, tensors: [tensor('t', [8])], alignment: 65_536, data: 32 });
    expect((await parseBytes(bytes)).tensors).toMatchObject([{ name: 't', offset: 65_536, bytes: 32 }]);
  });
});
