/**
 * How small may Nano be? Converts its checkpoint to each candidate type and compares the engine's logits with those of the
 * transformers library: `node scripts/measure-nano.ts CHECKPOINT` prints the table in models/README.md.
 */

import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { convertCheckpoint } from '../src/convert/convert.ts';
import type { ConvertType } from '../src/convert/tensor-types.ts';
import { openGguf } from '../src/gguf/open.ts';
import { modelConfig } from '../src/model/gguf.ts';
import { loadRuntime } from '../src/runtime/load.ts';
import { klDivergence } from '../src/sampling/distribution.ts';
import { type Golden, greedyAnswer, readGoldens } from '../test/convert/goldens.ts';
import { promptLogits } from '../test/runtime/models.ts';

/** The type of all matrices, and of the head where it differs. */
const candidates: readonly (readonly [ConvertType, ConvertType?])[] = [
  ['q4_k_m'],
  ['q6_k'],
  ['q8_0'],
  ['q4_k_m', 'bf16'],
  ['q6_k', 'bf16'],
  ['q8_0', 'bf16'],
  ['bf16'],
];

async function measure(path: string, goldens: readonly Golden[]): Promise<string> {
  const gguf = await openGguf(path);
  const runtime = await loadRuntime({
    gguf,
    config: modelConfig(gguf),
    backend: 'wasm',
    threads: 2,
    contextTokens: 1024,
  });
  try {
    const divergences: number[] = [];
    let same = 0;
    for (const golden of goldens) {
      const rows = await promptLogits(runtime, golden.tokens);
      const answer = greedyAnswer(rows, golden);
      if (answer.join() === golden.tokens.slice(golden.promptLength).join()) same += 1;
      for (const [i, position] of golden.positions.entries()) {
        divergences.push(klDivergence(golden.logits[i] as Float32Array, rows[position] as Float32Array));
      }
    }
    const mean = divergences.reduce((total, value) => total + value, 0) / divergences.length;
    const megabytes = ((await stat(path)).size / 1e6).toFixed(1);
    return `${megabytes} | ${same} of ${goldens.length} | ${mean.toExponential(1)} | ${Math.max(...divergences).toExponential(1)} |`;
  } finally {
    await runtime.close();
  }
}

const checkpoint = process.argv[2];
if (checkpoint === undefined) throw new Error('usage: node scripts/measure-nano.ts CHECKPOINT');
const folder = await mkdtemp(join(tmpdir(), 'perigee-nano-'));
try {
  const goldens = await readGoldens('nano');
  console.log('| type | head | MB | golden texts kept | mean KL | largest KL |\n|---|---|---|---|---|---|');
  for (const [type, head] of candidates) {
    const path = join(folder, 'nano.gguf');
    await convertCheckpoint(checkpoint, path, { type, ...(head && { head }) });
    console.log(`| ${type} | ${head ?? 'as usual'} | ${await measure(path, goldens)}`);
  }
} finally {
  await rm(folder, { recursive: true });
}
