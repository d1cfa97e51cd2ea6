/**
 * How small may Nano be? Converts its checkpoint to each candidate type and compares the engine's logits with those of the
 * transformers library: `node scripts/measure-nano.ts CHECKPOINT` prints the table in models/README.md. `q8_0 bf16` means a head
 * in bf16, everything else in q8_0.
 */
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { convertCheckpoint } from '../src/convert/convert.ts';
import { readHeader } from '../src/convert/safetensors.ts';
import type { ConvertType } from '../src/convert/tensor-types.ts';
import { openGguf } from '../src/gguf/open.ts';
import { modelConfig } from '../src/model/gguf.ts';
import { loadRuntime } from '../src/runtime/load.ts';
import { pageTokens, type Runtime } from '../src/runtime/runtime.ts';

interface Golden {
  readonly tokens: Int32Array;
  readonly promptLength: number;
  readonly positions: Int32Array;
  /** [positions][vocabulary] */
  readonly logits: Float32Array;
}

const goldenFile = fileURLToPath(new URL('../test/fixtures/nano/golden.safetensors', import.meta.url));

async function readGoldens(): Promise<Golden[]> {
  const header = new Map((await readHeader(goldenFile)).map((tensor) => [tensor.name, tensor]));
  const file = await readFile(goldenFile);
  const bytes = (name: string) => {
    const tensor = header.get(name);
    if (tensor === undefined) throw new Error(`${goldenFile} has no ${name}`);
    return Uint8Array.from(file.subarray(tensor.offset, tensor.offset + tensor.bytes)).buffer;
  };
  const count = [...header.keys()].filter((name) => name.endsWith('.tokens')).length;
  return Array.from({ length: count }, (_, n) => ({
    tokens: new Int32Array(bytes(`${n}.tokens`)),
    promptLength: new Int32Array(bytes(`${n}.prompt_length`))[0] as number,
    positions: new Int32Array(bytes(`${n}.positions`)),
    logits: new Float32Array(bytes(`${n}.logits`)),
  }));
}

/** Logits of every position of `tokens`, alone in the engine. */
async function score(runtime: Runtime, tokens: Int32Array): Promise<Float32Array[]> {
  const all = tokens.map((_, index) => index);
  const logits = await runtime.step({
    tokens,
    positions: all,
    sequences: new Int32Array(tokens.length),
    pageTables: [Int32Array.from({ length: Math.ceil(tokens.length / pageTokens) }, (_, page) => page)],
    outputs: all,
  });
  const width = runtime.config.vocabulary;
  return Array.from(all, (index) => logits.slice(index * width, (index + 1) * width));
}

function logProbabilities(logits: Float32Array): Float64Array {
  const largest = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - largest), 0);
  return Float64Array.from(logits, (logit) => logit - largest - Math.log(sum));
}

/** KL divergence of the distribution `found` from `expected`, in nats. */
function divergence(expected: Float32Array, found: Float32Array): number {
  const p = logProbabilities(expected);
  const q = logProbabilities(found);
  return p.reduce((total, logP, index) => total + Math.exp(logP) * (logP - (q[index] as number)), 0);
}

interface Comparison {
  readonly divergences: readonly number[];
  /** The greedy answer, token for token. */
  readonly sameText: boolean;
}

async function compare(runtime: Runtime, golden: Golden): Promise<Comparison> {
  const rows = await score(runtime, golden.tokens);
  const width = runtime.config.vocabulary;
  const divergences = Array.from(golden.positions, (position, index) => {
    return divergence(golden.logits.subarray(index * width, (index + 1) * width), rows[position] as Float32Array);
  });
  // Each next token is the largest logit, given that all before it were the same: so is the whole greedy text.
  const answer = rows.slice(golden.promptLength - 1, -1);
  const sameText = answer.every((row, index) => {
    return row.indexOf(Math.max(...row)) === golden.tokens[golden.promptLength + index];
  });
  return { divergences, sameText };
}

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
    build: 'relaxed',
    threads: 2,
    contextTokens: 1024,
  });
  try {
    const results: Comparison[] = [];
    for (const golden of goldens) results.push(await compare(runtime, golden));
    const all = results.flatMap(({ divergences }) => divergences);
    const mean = all.reduce((total, value) => total + value, 0) / all.length;
    const same = results.filter(({ sameText }) => sameText).length;
    const megabytes = ((await stat(path)).size / 1e6).toFixed(1);
    return `${megabytes} | ${same} of ${goldens.length} | ${mean.toExponential(1)} | ${Math.max(...all).toExponential(1)} |`;
  } finally {
    await runtime.close();
  }
}

const checkpoint = process.argv[2];
if (checkpoint === undefined) throw new Error('usage: node scripts/measure-nano.ts CHECKPOINT');
const folder = await mkdtemp(join(tmpdir(), 'perigee-nano-'));
try {
  const goldens = await readGoldens();
  console.log('| type | head | MB | golden texts kept | mean KL | largest KL |\n|---|---|---|---|---|---|');
  for (const [type, head] of candidates) {
    const path = join(folder, 'nano.gguf');
    await convertCheckpoint(checkpoint, path, { type, ...(head && { head }) });
    console.log(`| ${type} | ${head ?? 'as usual'} | ${await measure(path, goldens)}`);
  }
} finally {
  await rm(folder, { recursive: true });
}
