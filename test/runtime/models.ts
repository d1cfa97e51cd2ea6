/** Small models for runtime tests: synthetic ones written to a temporary folder, and helpers to run prompts through a runtime. */
import { createHash } from 'node:crypto';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openGguf } from '../../src/gguf/open.ts';
import type { GgufModel } from '../../src/gguf/types.ts';
import type { ModelConfig } from '../../src/model/config.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { type SyntheticOptions, writeSynthetic } from '../../src/model/synthetic.ts';
import { pageTokens, type Runtime } from '../../src/runtime/runtime.ts';

export interface TestModel {
  readonly gguf: GgufModel;
  readonly config: ModelConfig;
}

const folder = mkdtempSync(join(tmpdir(), 'perigee-models-'));
const made = new Map<string, Promise<TestModel>>();

/** A synthetic model, made once per process. */
export function syntheticTestModel(options: SyntheticOptions): Promise<TestModel> {
  const key = createHash('sha256').update(JSON.stringify(options)).digest('hex').slice(0, 16);
  const path = join(folder, `${key}.gguf`);
  const model = made.get(key) ?? writeSynthetic(path, options).then(() => openTestModel(path));
  made.set(key, model);
  return model;
}

export async function openTestModel(path: string): Promise<TestModel> {
  const gguf = await openGguf(path);
  return { gguf, config: modelConfig(gguf) };
}

/** Deterministic token ids below `vocabulary`. */
export function someTokens(count: number, vocabulary: number, seed = 1): number[] {
  let state = seed;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return state % vocabulary;
  });
}

const pagesFrom = (first: number, tokens: number): Int32Array =>
  Int32Array.from({ length: Math.ceil(tokens / pageTokens) }, (_, i) => first + i);

/**
 * Logits of every position of one prompt, the prompt cut into steps of the given lengths (the last repeats). Pages from
 * `firstPage` on are used.
 */
export async function promptLogits(
  runtime: Runtime,
  tokens: readonly number[],
  cuts: readonly number[] = [tokens.length],
  firstPage = 0,
): Promise<Float32Array[]> {
  const rows: Float32Array[] = [];
  for (let done = 0, step = 0; done < tokens.length; step++) {
    const length = Math.min(
      cuts[Math.min(step, cuts.length - 1)] as number,
      tokens.length - done,
      runtime.limits.batchOutputs,
    );
    const logits = await runtime.step({
      tokens: Int32Array.from(tokens.slice(done, done + length)),
      positions: Int32Array.from({ length }, (_, i) => done + i),
      sequences: new Int32Array(length),
      pageTables: [pagesFrom(firstPage, tokens.length)],
      outputs: Int32Array.from({ length }, (_, i) => i),
    });
    for (let i = 0; i < length; i++)
      rows.push(logits.slice(i * runtime.config.vocabulary, (i + 1) * runtime.config.vocabulary));
    done += length;
  }
  return rows;
}

/** Two prompts in one step, logits of both. */
export async function batchLogits(
  runtime: Runtime,
  prompts: readonly (readonly number[])[],
): Promise<Float32Array[][]> {
  const tokens = prompts.flat();
  const vocabulary = runtime.config.vocabulary;
  let firstPage = 0;
  const pageTables = prompts.map((prompt) => {
    const table = pagesFrom(firstPage, prompt.length);
    firstPage += table.length;
    return table;
  });
  const logits = await runtime.step({
    tokens: Int32Array.from(tokens),
    positions: Int32Array.from(prompts.flatMap((prompt) => prompt.map((_, i) => i))),
    sequences: Int32Array.from(prompts.flatMap((prompt, index) => prompt.map(() => index))),
    pageTables,
    outputs: Int32Array.from(tokens.keys()),
  });
  let row = 0;
  return prompts.map((prompt) => prompt.map(() => logits.slice(row * vocabulary, ++row * vocabulary)));
}

/** A hash of all bits. */
export function bitsOf(rows: readonly Float32Array[]): string {
  const hash = createHash('sha256');
  for (const row of rows) hash.update(new Uint8Array(row.buffer, row.byteOffset, row.byteLength));
  return hash.digest('hex');
}

/** Mean Kullback-Leibler divergence of next-token distributions, in nats. */
export function meanDivergence(rows: readonly ArrayLike<number>[], expected: readonly ArrayLike<number>[]): number {
  const logProbabilities = (logits: ArrayLike<number>): number[] => {
    const all = Array.from(logits);
    const most = all.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const total = most + Math.log(all.reduce((sum, logit) => sum + Math.exp(logit - most), 0));
    return all.map((logit) => logit - total);
  };
  const divergences = expected.map((want, index) => {
    const p = logProbabilities(want);
    const q = logProbabilities(rows[index] as ArrayLike<number>);
    return p.reduce((sum, log, i) => sum + Math.exp(log) * (log - (q[i] as number)), 0);
  });
  return divergences.reduce((sum, divergence) => sum + divergence, 0) / divergences.length;
}

/** Relative error in the Euclidean norm over all rows. */
export function relativeError(rows: readonly ArrayLike<number>[], expected: readonly ArrayLike<number>[]): number {
  let difference = 0;
  let magnitude = 0;
  expected.forEach((want, index) => {
    const got = rows[index] as ArrayLike<number>;
    for (let i = 0; i < want.length; i++) {
      difference += ((got[i] as number) - (want[i] as number)) ** 2;
      magnitude += (want[i] as number) ** 2;
    }
  });
  return Math.sqrt(difference / magnitude);
}
