/** A whole small model, cut anywhere and with bytes changed anywhere: it loads or it is refused with a code, never anything else. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { PerigeeError } from '../../src/errors.ts';
import { parseGguf } from '../../src/gguf/parse.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { inspectText } from '../../src/model/inspect.ts';
import { tokenizerFromGguf } from '../../src/tokenizer/gguf.ts';
import { writeMicro } from '../model/micro.ts';
import { errorOf, parseBytes } from './raw.ts';

let folder = '';
let model: Buffer = Buffer.alloc(0);
let dataStart = 0;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'perigee-damaged-'));
  await writeMicro(join(folder, 'micro.gguf'));
  model = await readFile(join(folder, 'micro.gguf'));
  dataStart = Math.min(...(await parseBytes(model)).tensors.map((tensor) => tensor.offset));
});

afterAll(() => rm(folder, { recursive: true }));

it('is refused when cut at any byte of its header', async () => {
  for (let length = 0; length < dataStart; length++) {
    const error = await errorOf(() => parseBytes(model.subarray(0, length)));
    expect(['GGUF_BAD_MAGIC', 'GGUF_TRUNCATED', 'GGUF_BAD_TENSOR'], `cut at ${length}`).toContain(error.code);
  }
});

it.each([0, 0.25, 0.5, 0.99])('is refused when %d of its data is there', async (share) => {
  const length = dataStart + Math.floor((model.length - dataStart) * share);
  expect((await errorOf(() => parseBytes(model.subarray(0, length)))).code).toBe('GGUF_BAD_TENSOR');
});

it('is refused when it shrinks while it is read', async () => {
  const source = {
    name: 'test.gguf',
    bytes: model.length,
    read: async (offset: number, target: Uint8Array) => model.copy(target, 0, offset, 500),
  };
  expect((await errorOf(() => parseGguf(source))).code).toBe('GGUF_TRUNCATED');
});

/** Everything that is done with a model before its weights are read. */
async function open(bytes: Buffer): Promise<void> {
  const file = await parseBytes(bytes);
  const gguf = {
    ...file,
    files: [{ path: 'test.gguf', bytes: bytes.length }],
    tensors: new Map(file.tensors.map((tensor) => [tensor.name, tensor])),
  };
  inspectText(gguf, modelConfig(gguf));
  tokenizerFromGguf(gguf);
}

/** Marsaglia's xorshift32. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** One to four changes within the header: a bit, a byte, eight bytes of one value, a byte lost, a byte doubled. */
function mutate(bytes: Buffer, next: (below: number) => number): Buffer {
  let mutant = Buffer.from(bytes);
  for (let changes = 1 + next(4); changes > 0; changes--) {
    const at = next(dataStart);
    const kind = next(5);
    if (kind === 0) mutant[at] = (mutant[at] ?? 0) ^ (1 << next(8));
    else if (kind === 1) mutant[at] = next(256);
    else if (kind === 2) mutant.fill([0, 0xff, 0x80, 0x7f][next(4)] ?? 0, at, at + 8);
    else if (kind === 3) mutant = Buffer.concat([mutant.subarray(0, at), mutant.subarray(at + 1)]);
    else mutant = Buffer.concat([mutant.subarray(0, at + 1), mutant.subarray(at)]);
  }
  return mutant;
}

const mutants = Number(process.env.PERIGEE_FUZZ_MUTANTS ?? 2000);

it(`survives ${mutants} mutants of its header`, async () => {
  const next = random(20250711);
  const outcomes = new Map<string, number>();
  for (let index = 0; index < mutants; index++) {
    const mutant = mutate(model, next);
    let outcome = 'opened';
    try {
      await open(mutant);
    } catch (error) {
      if (!(error instanceof PerigeeError)) throw new Error(`mutant ${index} broke the reader`, { cause: error });
      outcome = error.code;
    }
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
  }
  // The loop is worth its time only while mutants reach every stage.
  expect([...outcomes.keys()]).toEqual(
    expect.arrayContaining([
      'GGUF_TRUNCATED',
      'GGUF_BAD_METADATA',
      'GGUF_BAD_TENSOR',
      'MODEL_BAD_CONFIG',
      'MODEL_BAD_TENSOR',
    ]),
  );
});
