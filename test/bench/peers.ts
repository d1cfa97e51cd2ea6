/**
 * `make bench-peers`: Perigee and others on the same GGUF file in the same run, in interleaved rounds, each in its own process,
 * beside what the machine reads and multiplies.
 *
 *   node test/bench/peers.ts [model.gguf] [--threads 2,1] [--rounds 3] [--minutes 10] [--peers NAME,...] [--json FILE]
 */
import { existsSync } from 'node:fs';
import { mkdir, rename, stat, statfs, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { openGguf } from '../../src/gguf/open.ts';
import { modelConfig } from '../../src/model/gguf.ts';
import { writeSynthetic } from '../../src/model/synthetic.ts';
import { modelTensors } from '../../src/model/tensors.ts';
import { activeBytes } from '../../src/runtime/place.ts';
import { availableMemory } from '../../src/select/available-memory.ts';
import type { PeerSpec } from './peers/peer-process.ts';
import type { Workload } from './peers/protocol.ts';
import { baseOf, cellOf, columnText, title } from './peers/report.ts';
import { type Column, measureRounds, note } from './peers/rounds.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));

const specs: readonly PeerSpec[] = [
  { name: 'perigee-wasm', script: 'perigee.ts', variant: 'wasm' },
  { name: 'perigee-native', script: 'perigee.ts', variant: 'native' },
  { name: 'llama.cpp', script: 'llama-bench.ts', variant: join(root, 'build/bench/llama.cpp/bin/llama-bench') },
  // One libuv thread: with the usual four, each token is evaluated on another, and 2 threads decode half as fast.
  { name: 'node-llama-cpp', script: 'node-llama-cpp.ts', variant: '', env: { UV_THREADPOOL_SIZE: '1' } },
  { name: 'wllama', script: 'wllama.ts', variant: '' },
];

const workloads: readonly Workload[] = [
  { kind: 'decode', tokens: 64 },
  { kind: 'prefill', tokens: 128 },
  { kind: 'prefill', tokens: 512 },
  { kind: 'first-token', tokens: 2000 },
];

/** Memory of all peers together in sizes of the file: maps, repacked copies, a browser's copy and its copy. */
const copiesOfModel = 9;

/** bench-1b as a file, made at the first run. */
async function benchModel(): Promise<string> {
  const path = join(root, 'build/bench/bench-1b-q4_k_m.gguf');
  if (existsSync(path)) return path;
  await mkdir(dirname(path), { recursive: true });
  const { bavail, bsize } = await statfs(dirname(path));
  if (bavail * bsize < 2e9) throw new Error(`bench-1b takes 1.3 GB; build/bench has ${(bavail * bsize) / 1e9} GB free`);
  note('writing bench-1b, 1.2 GB');
  // Under another name until it is whole.
  await writeSynthetic(`${path}.part`, { shape: 'bench-1b', mix: 'q4_k_m' });
  await rename(`${path}.part`, path);
  return path;
}

function countOf(option: string, text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw new Error(`${option} is '${text}'; it takes whole numbers from 1`);
}

async function tokenWeights(file: string): Promise<number> {
  const gguf = await openGguf(file);
  const config = modelConfig(gguf);
  return activeBytes(config, modelTensors(gguf, config));
}

function jsonOf(file: string, columns: readonly Column[]): string {
  const cells = columns.map((column) => ({
    ...column,
    base: baseOf(column),
    results: Object.keys(column.settings).map((peer) => ({
      peer,
      ...Object.fromEntries(workloads.map((workload) => [title(workload), cellOf(column, peer, workload)])),
    })),
  }));
  return `${JSON.stringify({ model: file, cpu: cpus()[0]?.model, columns: cells }, null, 2)}\n`;
}

async function main(): Promise<void> {
  const everyThread = availableParallelism();
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      threads: { type: 'string', default: everyThread === 1 ? '1' : `${everyThread},1` },
      rounds: { type: 'string', default: '3' },
      minutes: { type: 'string', default: '10' },
      peers: { type: 'string', default: specs.map(({ name }) => name).join(',') },
      json: { type: 'string' },
    },
  });
  const names = values.peers.split(',');
  const unknown = names.find((name) => !specs.some((spec) => spec.name === name));
  if (unknown !== undefined)
    throw new Error(`there is no peer '${unknown}'; there are ${specs.map(({ name }) => name).join(', ')}`);
  const counts = values.threads.split(',').map((text) => countOf('--threads', text));
  const rounds = countOf('--rounds', values.rounds);
  const end = performance.now() + 60_000 * countOf('--minutes', values.minutes);

  const file = positionals[0] ?? (await benchModel());
  const needed = copiesOfModel * (await stat(file)).size * (names.length / specs.length);
  const bytes = availableMemory();
  if (needed > bytes)
    note(
      `these peers may need ${(needed / 1e9).toFixed(0)} GB of memory together; ${(bytes / 1e9).toFixed(0)} GB are free`,
    );
  const tokenBytes = await tokenWeights(file);

  const columns: Column[] = [];
  for (const [index, threads] of counts.entries()) {
    const now = performance.now();
    const deadline = now + (end - now) / (counts.length - index);
    const peers = specs.filter(({ name }) => names.includes(name));
    columns.push(await measureRounds({ file, threads, peers, workloads, rounds, deadline }));
    if (values.json !== undefined) await writeFile(values.json, jsonOf(file, columns));
  }
  process.stdout.write(`\n${columns.map((column) => columnText(column, workloads, tokenBytes)).join('\n\n')}\n`);
}

await main();
