/** Converted checkpoints, run by the engine, against logits of the transformers library. */

import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { convertCheckpoint } from '../../src/convert/convert.ts';
import { openGguf } from '../../src/gguf/open.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { nanoFile } from '../../src/runtime/assets.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import { klDivergence } from '../../src/sampling/distribution.ts';
import { promptLogits, relativeError } from '../runtime/models.ts';
import { greedyAnswer, readGoldens } from './goldens.ts';
import { temporary } from './support.ts';

async function logitsOf(
  path: string,
  prompts: readonly (readonly number[])[],
  exact: boolean,
): Promise<Float32Array[][]> {
  const gguf = await openGguf(path);
  const runtime = await loadRuntime({
    gguf,
    config: modelConfig(gguf),
    backend: 'wasm',
    threads: 2,
    exact,
    contextTokens: 1024,
  });
  try {
    const all: Float32Array[][] = [];
    for (const prompt of prompts) all.push(await promptLogits(runtime, prompt));
    return all;
  } finally {
    await runtime.close();
  }
}

describe('Moonlight converted to F32', () => {
  it('gives the reference logits with float activations', async () => {
    const folder = fileURLToPath(new URL('../fixtures/moonlight', import.meta.url));
    const path = join(temporary, 'moonlight-f32.gguf');
    await convertCheckpoint(folder, path, { type: 'f32' });
    const [golden] = await readGoldens('moonlight');
    const [rows] = await logitsOf(path, [golden?.tokens ?? []], true);
    const kept = golden?.positions.map((position) => rows?.[position] as Float32Array) ?? [];
    expect(relativeError(kept, golden?.logits ?? [])).toBeLessThan(1e-4);
  });
});

describe('Nano as shipped', () => {
  it('writes the reference texts, and its distributions stay close to the reference', async () => {
    const goldens = await readGoldens('nano');
    const rows = await logitsOf(
      nanoFile,
      goldens.map(({ tokens }) => tokens),
      false,
    );
    const divergences = goldens.flatMap(({ positions, logits }, n) =>
      positions.map((position, i) => klDivergence(logits[i] as Float32Array, rows[n]?.[position] as Float32Array)),
    );
    expect(divergences.reduce((total, value) => total + value, 0) / divergences.length).toBeLessThan(5e-3);
    for (const [n, golden] of goldens.entries()) {
      expect(greedyAnswer(rows[n] ?? [], golden)).toEqual(golden.tokens.slice(golden.promptLength));
    }
  });
});
