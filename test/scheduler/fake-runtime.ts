/**
 * A runtime without arithmetic: it stores each token where its page table says, reads the history back the same way, and lets
 * a function of the history choose the next token. So a wrong page, position or prefix gives a wrong token.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { ModelConfig } from '../../src/model/config.ts';
import { pageTokens, type Runtime, type StepBatch } from '../../src/runtime/runtime.ts';
import type { SamplingOptions } from '../../src/sampling/types.ts';

export interface FakeRuntimeOptions {
  readonly next: (history: readonly number[]) => number;
  readonly vocabulary?: number;
  readonly pages?: number;
  readonly batchTokens?: number;
  readonly context?: number;
  /** Most sequences of a step; default 1. */
  readonly sequences?: number;
  /** Most rows of logits of a step; default: one for each sequence. */
  readonly outputs?: number;
  /** Runs before each step; may wait, or throw to make the runtime fail. */
  readonly beforeStep?: (batch: StepBatch) => Promise<void> | void;
}

export class FakeRuntime implements Runtime {
  readonly backend = 'wasm';
  readonly isa = 'fake';
  readonly threads = 1;
  readonly weightBytes = 1;
  readonly activeWeightBytes = 1;
  readonly config: ModelConfig;
  readonly limits;
  readonly batches: StepBatch[] = [];
  closed = false;
  readonly #options: FakeRuntimeOptions;
  readonly #memory: Int32Array;

  constructor(options: FakeRuntimeOptions) {
    const { vocabulary = 64, pages = 8, batchTokens = 16, context = pages * pageTokens, sequences = 1 } = options;
    const { outputs = sequences } = options;
    this.#options = options;
    this.config = { ...shape, vocabulary, context };
    this.limits = { batchTokens, batchOutputs: outputs, batchSequences: sequences, pages, context };
    this.#memory = new Int32Array(pages * pageTokens).fill(-1);
  }

  async step(batch: StepBatch): Promise<Float32Array> {
    this.batches.push(batch);
    await turn();
    await this.#options.beforeStep?.(batch);
    const place = (sequence: number, position: number) => {
      const page = batch.pageTables[sequence]?.[Math.floor(position / pageTokens)];
      if (page === undefined) throw new Error(`no page for position ${position}`);
      return page * pageTokens + (position % pageTokens);
    };
    batch.tokens.forEach((token, i) => {
      this.#memory[place(batch.sequences[i]!, batch.positions[i]!)] = token;
    });
    const logits = new Float32Array(batch.outputs.length * this.config.vocabulary);
    batch.outputs.forEach((index, row) => {
      const last = batch.positions[index]!;
      const history = Array.from(
        { length: last + 1 },
        (_, position) => this.#memory[place(batch.sequences[index]!, position)]!,
      );
      logits[row * this.config.vocabulary + this.#options.next(history)] = 1;
    });
    return logits;
  }

  tap(): never {
    throw new RangeError('a fake runtime has no taps');
  }

  stageTimes(): [] {
    return [];
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}

export const greedy: SamplingOptions = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: [],
  seed: 1,
};

const shape: ModelConfig = {
  name: 'fake',
  architecture: 'deepseek2',
  layers: 1,
  denseLayers: 1,
  hidden: 64,
  vocabulary: 64,
  context: 512,
  heads: 1,
  qRank: 0,
  kvRank: 16,
  nopeDim: 16,
  ropeDim: 16,
  valueDim: 16,
  denseWidth: 64,
  experts: 0,
  expertsUsed: 0,
  expertWidth: 0,
  sharedWidth: 0,
  expertGroups: 1,
  expertGroupsUsed: 1,
  gating: 'sigmoid',
  normalizeWeights: true,
  weightScale: 1,
  rmsEps: 1e-6,
  ropeBase: 10000,
  yarn: null,
  yarnBetaSource: 'file',
};
