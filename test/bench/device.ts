/**
 * How native speed grows with threads, beside what the machine reads with as many: bench-1b, and one MoE layer of Kimi K2's
 * width. Bundled into one file it needs nothing but Node and the addon beside it:
 *
 *   make bench-device && node build/bench/device/device.js [--threads 1,2,4] [--isa NAME] [--models FOLDER] [--json FILE]
 */
import { existsSync } from 'node:fs';
import { rename, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { thisMachine } from '../../src/cli/load-engine.ts';
import { projectTimes } from '../../src/cli/projection.ts';
import { openGguf } from '../../src/gguf/open.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { type SyntheticShape, syntheticModel, writeSynthetic } from '../../src/model/synthetic.ts';
import { modelTensors } from '../../src/model/tensors.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import { measureNative } from '../../src/runtime/native-addon.ts';
import { activeBytes } from '../../src/runtime/place.ts';
import type { Runtime } from '../../src/runtime/runtime.ts';
import { selectBackend } from '../../src/select/select.ts';
import { decodeTokens, promptTokens, runTokens } from './prompt.ts';

/** Of each measurement; the median counts. */
const rounds = 3;
const decodeLength = 64;
/** Prompts run in one step, as they are best on machines of many cores: a step reads each expert once. */
const longestPrompt = 2048;

interface Timed {
  readonly milliseconds: number;
  readonly stages: readonly { readonly stage: string; readonly milliseconds: number }[];
}

async function timed(runtime: Runtime, work: () => Promise<unknown>): Promise<Timed> {
  const all: Timed[] = [];
  for (let round = 0; round < rounds; round++) {
    const before = runtime.stageTimes();
    const start = performance.now();
    await work();
    const milliseconds = performance.now() - start;
    const stages = runtime.stageTimes().map(({ stage, milliseconds: total }, index) => ({
      stage,
      milliseconds: total - (before[index]?.milliseconds ?? 0),
    }));
    all.push({ milliseconds, stages });
  }
  return all.sort((a, b) => a.milliseconds - b.milliseconds)[rounds >> 1] as Timed;
}

/** A random model's file in `folder`, made where it is missing. */
async function modelFile(folder: string, shape: SyntheticShape, moeLayers?: number): Promise<string> {
  const path = join(folder, `${shape}-${moeLayers ?? 'all'}-q4_k_m.gguf`);
  if (existsSync(path)) return path;
  process.stderr.write(`writing ${path}\n`);
  await writeSynthetic(`${path}.part`, { shape, mix: 'q4_k_m', moeLayers });
  await rename(`${path}.part`, path);
  return path;
}

/** Threads and the CPUs they are pinned to, as the command chooses them. */
function ranksOf(threads: number, isa: string | undefined) {
  const plan = selectBackend(thisMachine(), { backend: 'native', threads, isa });
  return { isa: plan.isa, threads, cpus: plan.cpus ?? [] };
}

type Ranks = ReturnType<typeof ranksOf>;

async function withModel<T>(path: string, ranks: Ranks, work: (runtime: Runtime) => Promise<T>): Promise<T> {
  const gguf = await openGguf(path);
  const contextTokens = longestPrompt;
  const options = {
    gguf,
    config: modelConfig(gguf),
    backend: 'native',
    contextTokens,
    batchTokens: longestPrompt,
  } as const;
  const runtime = await loadRuntime({ ...options, ...ranks });
  try {
    await runTokens(runtime, promptTokens(64), 0);
    return await work(runtime);
  } finally {
    await runtime.close();
  }
}

async function measureBench1b(path: string, ranks: Ranks): Promise<Bench1b> {
  return withModel(path, ranks, async (runtime) => {
    const prefill = await timed(runtime, () => runTokens(runtime, promptTokens(512), 0));
    const decode = await timed(runtime, () => decodeTokens(runtime, 5, 64, decodeLength));
    return {
      prefill512: 512_000 / prefill.milliseconds,
      decode: (1000 * decodeLength) / decode.milliseconds,
      decodeGbPerSecond: (runtime.activeWeightBytes * decodeLength) / decode.milliseconds / 1e6,
    };
  });
}

/** tokens/s, and weights read in decode. */
interface Bench1b {
  readonly prefill512: number;
  readonly decode: number;
  readonly decodeGbPerSecond: number;
}

/** Milliseconds of one MoE layer, for one token and for whole prompts, and weights read in decode. */
interface K2Layer {
  readonly decode: number;
  readonly decodeGbPerSecond: number;
  readonly prompt128: number;
  readonly prompt2048: number;
}

async function measureK2Layer(path: string, ranks: Ranks): Promise<K2Layer> {
  return withModel(path, ranks, async (runtime) => {
    const layer = async (tokens: number, work: () => Promise<unknown>) => {
      const times = projectTimes({ tokens, ...(await timed(runtime, work)) }, runtime.config);
      return tokens * (times?.moeLayer ?? Number.NaN);
    };
    const decode = (await layer(decodeLength, () => decodeTokens(runtime, 5, 64, decodeLength))) / decodeLength;
    return {
      decode,
      decodeGbPerSecond: moeLayerBytes() / decode / 1e6,
      prompt128: await layer(128, () => runTokens(runtime, promptTokens(128), 0)),
      prompt2048: await layer(2048, () => runTokens(runtime, promptTokens(2048), 0)),
    };
  });
}

/** Bytes of weights one token reads in a MoE layer of Kimi K2's width. */
function moeLayerBytes(): number {
  const [without, withOne] = [0, 1].map((moeLayers) => {
    const gguf = syntheticModel({ shape: 'k2', mix: 'q4_k_m', moeLayers });
    const config = modelConfig(gguf);
    return activeBytes(config, modelTensors(gguf, config));
  }) as [number, number];
  return withOne - without;
}

interface Row {
  readonly threads: number;
  readonly isa: string;
  readonly readGbPerSecond: number;
  readonly int8Gops: number;
  readonly bench1b: Bench1b;
  readonly k2Layer: K2Layer | null;
}

function rowText({ threads, readGbPerSecond, int8Gops, bench1b, k2Layer }: Row): string {
  const share = (rate: number) => `${rate.toFixed(1)} (${((100 * rate) / readGbPerSecond).toFixed(0)} %)`;
  const cells = [
    String(threads),
    readGbPerSecond.toFixed(1),
    int8Gops.toFixed(0),
    bench1b.decode.toFixed(1),
    share(bench1b.decodeGbPerSecond),
    bench1b.prefill512.toFixed(0),
    ...(k2Layer === null
      ? []
      : [
          k2Layer.decode.toFixed(2),
          share(k2Layer.decodeGbPerSecond),
          k2Layer.prompt128.toFixed(0),
          k2Layer.prompt2048.toFixed(0),
        ]),
  ];
  return `| ${cells.join(' | ')} |`;
}

const columns = [
  'threads',
  'read GB/s',
  'int8 Gop/s',
  'bench-1b decode, tokens/s',
  'GB/s of weights',
  'prefill 512, tokens/s',
  'K2 layer decode, ms',
  'GB/s of weights',
  '128 tokens, ms',
  '2,048 tokens, ms',
];

/** 1, 2, 4, ... and all. */
function doublings(most: number): number[] {
  const powers = Array.from({ length: Math.floor(Math.log2(most)) + 1 }, (_, power) => 2 ** power);
  return powers.includes(most) ? powers : [...powers, most];
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      threads: { type: 'string', default: doublings(availableParallelism()).join(',') },
      isa: { type: 'string' },
      models: { type: 'string', default: tmpdir() },
      json: { type: 'string' },
      // Its file has 9.9 GB.
      'without-k2': { type: 'boolean', default: false },
    },
  });
  const bench1b = await modelFile(values.models, 'bench-1b');
  const k2 = values['without-k2'] ? null : await modelFile(values.models, 'k2', 1);
  const rows: Row[] = [];
  process.stdout.write(`${cpus()[0]?.model}, q4_k_m, medians of ${rounds}, prompts in one step\n\n`);
  const shown = k2 === null ? columns.slice(0, 6) : columns;
  process.stdout.write(`| ${shown.join(' | ')} |\n|${shown.map(() => '---|').join('')}\n`);
  for (const threads of values.threads.split(',').map(Number)) {
    const ranks = ranksOf(threads, values.isa);
    const row: Row = {
      threads,
      isa: ranks.isa,
      ...(await measureNative(threads, ranks.isa, ranks.cpus)),
      bench1b: await measureBench1b(bench1b, ranks),
      k2Layer: k2 === null ? null : await measureK2Layer(k2, ranks),
    };
    rows.push(row);
    process.stdout.write(`${rowText(row)}\n`);
    if (values.json !== undefined) await writeFile(values.json, `${JSON.stringify(rows, null, 2)}\n`);
  }
}

await main();
