/** node-llama-cpp's prebuilt llama.cpp as a peer. Start it with UV_THREADPOOL_SIZE=1: see the README. */
import { promptTokens } from '../prompt.ts';
import { contextTokens, decodePrompt, type Peer, servePeer, timed, type Workload } from './protocol.ts';

/** The few calls used here; the package is not one that type checking can rely on. */
interface NodeLlamaCpp {
  getLlama(options: object): Promise<{ loadModel(options: object): Promise<Model>; readonly llamaCppRelease: Release }>;
}
interface Release {
  readonly release: string;
}
interface Model {
  createContext(options: object): Promise<{ getSequence(): Sequence }>;
}
interface Sequence {
  clearHistory(): Promise<void>;
  evaluateWithoutGeneratingNewTokens(tokens: readonly number[]): Promise<void>;
  evaluate(tokens: readonly number[], options: object): AsyncGenerator<number>;
}

async function load(file: string, threads: number): Promise<Peer> {
  const name = 'node-llama-cpp';
  const { getLlama } = (await import(name)) as NodeLlamaCpp;
  const llama = await getLlama({ gpu: false, build: 'never', maxThreads: threads, logLevel: 'error' });
  const model = await llama.loadModel({ modelPath: file, gpuLayers: 0 });
  const context = await model.createContext({
    contextSize: contextTokens,
    batchSize: 512,
    sequences: 1,
    threads,
    flashAttention: true,
  });
  const sequence = context.getSequence();

  /** Seconds until the first token after `prompt`, and until `count` more. */
  async function generate(prompt: readonly number[], count: number): Promise<{ first: number; all: number }> {
    const start = performance.now();
    let first = 0;
    let made = 0;
    for await (const _ of sequence.evaluate(prompt, { temperature: 0 })) {
      if (made++ === 0) first = performance.now() - start;
      if (made > count) break;
    }
    return { first: first / 1000, all: (performance.now() - start) / 1000 };
  }

  return {
    settings: `llama.cpp ${llama.llamaCppRelease.release}, flash attention, batches of 512, memory-mapped, one libuv thread`,
    async measure({ kind, tokens }: Workload): Promise<number> {
      await sequence.clearHistory();
      if (kind === 'prefill') return timed(() => sequence.evaluateWithoutGeneratingNewTokens(promptTokens(tokens)));
      if (kind === 'first-token') return (await generate(promptTokens(tokens), 0)).first;
      const { first, all } = await generate(promptTokens(decodePrompt), tokens);
      return all - first;
    },
  };
}

servePeer(load);
