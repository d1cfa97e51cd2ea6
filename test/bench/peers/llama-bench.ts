/** llama.cpp as a peer, by its own llama-bench: every measurement is a process of its own, its loading untimed. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { decodePrompt, type Peer, servePeer, type Workload } from './protocol.ts';

interface BenchResult {
  readonly build_commit: string;
  readonly build_number: number;
  readonly cpu_info: string;
  /** Nanoseconds of each repetition. */
  readonly samples_ns: readonly number[];
}

/** Longer prompts are measured from cold: their first touches are less than a hundredth of their time. */
const warmUpTokens = 512;

async function load(file: string, threads: number, tool: string): Promise<Peer> {
  const bench = async (args: readonly (string | number)[]): Promise<BenchResult> => {
    const common = ['-m', file, '-t', threads, '-fa', 'on', '-ub', 512, '-r', 1, '-o', 'json'];
    const { stdout } = await promisify(execFile)(tool, [...common, ...args].map(String));
    const [result] = JSON.parse(stdout) as BenchResult[];
    if (result === undefined) throw new Error('llama-bench printed no result');
    return result;
  };
  const measure = async ({ kind, tokens }: Workload): Promise<number> => {
    const what = kind === 'decode' ? ['-p', 0, '-n', tokens, '-d', decodePrompt] : ['-p', tokens, '-n', 0];
    const { samples_ns } = await bench([...what, ...(tokens > warmUpTokens ? ['--no-warmup'] : [])]);
    return (samples_ns[0] ?? Number.NaN) / 1e9;
  };
  const { build_number, build_commit } = await bench(['-p', 1, '-n', 0]);
  return {
    settings: `build ${build_number} (${build_commit}), flash attention, batches of 512, memory-mapped and repacked`,
    measure,
  };
}

servePeer(load);
