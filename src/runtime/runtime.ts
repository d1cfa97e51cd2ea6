/**
 * The seam between policy and arithmetic: a loaded model that can run one step over a batch of tokens. One implementation per
 * backend; everything above this line is the same for all.
 */
import type { ModelConfig } from '../model/config.ts';
import type { ModelTensors } from '../model/tensors.ts';
import type { Recipes } from './place.ts';
import type { TapName } from './taps.ts';

/** Positions per KV page. Page tables name pages by index. */
export const pageTokens = 64;

/**
 * One engine step. Token i is `tokens[i]` at position `positions[i]` of sequence `sequences[i]` (an index into `pageTables`);
 * tokens of one sequence are in ascending, consecutive positions. The step writes their latents into the KV pages and
 * computes the logits of the tokens listed in `outputs` (indices into `tokens`, ascending).
 */
export interface StepBatch {
  readonly tokens: Int32Array;
  readonly positions: Int32Array;
  readonly sequences: Int32Array;
  readonly pageTables: readonly Int32Array[];
  readonly outputs: Int32Array;
  /**
   * [layers + 1][tokens][hidden]: what each layer begins with, and the head, in place of what came before it. Only for GPUs
   * loaded with taps, so that each stage can be judged by equal inputs.
   */
  readonly residuals?: Float32Array;
}

export interface RuntimeLimits {
  /** Most tokens in one step. */
  readonly batchTokens: number;
  /** Most outputs in one step. */
  readonly batchOutputs: number;
  /** Most sequences in one step. */
  readonly batchSequences: number;
  readonly pages: number;
  /** Most positions one sequence may have. */
  readonly context: number;
}

/** Refuses a step that has more of something than the runtime has room for, or other residuals than it takes. */
export function checkStepSize(batch: StepBatch, limits: RuntimeLimits, residuals = 0): void {
  const { batchTokens, batchOutputs, batchSequences } = limits;
  if (
    batch.tokens.length > batchTokens ||
    batch.outputs.length > batchOutputs ||
    batch.pageTables.length > batchSequences
  ) {
    throw new RangeError(
      `the step was refused: more than ${batchTokens} tokens, ${batchOutputs} outputs or ${batchSequences} sequences`,
    );
  }
  if (batch.residuals !== undefined && batch.residuals.length !== residuals) {
    throw new RangeError(
      `the step was refused: ${batch.residuals.length} residual values where ${residuals} are taken`,
    );
  }
}

export interface StageTime {
  readonly stage: string;
  readonly milliseconds: number;
}

export interface Runtime {
  readonly backend: 'wasm' | 'native' | 'hybrid' | 'cuda';
  /** The kernel table in use: "relaxed", "simd128", "scalar", ... */
  readonly isa: string;
  readonly threads: number;
  readonly config: ModelConfig;
  readonly limits: RuntimeLimits;
  /** Bytes of weights held, and of them the bytes one decoded token reads. */
  readonly weightBytes: number;
  readonly activeWeightBytes: number;
  /** What was measured and decided at start, for people. */
  readonly notes?: readonly string[];

  /**
   * Runs one step; steps must not overlap. Resolves to the logits, [outputs.length][vocabulary], a view that the next step
   * overwrites. Rejects with ENGINE_FAILED when a rank trapped or died; the runtime is then unusable and must be closed.
   */
  step(batch: StepBatch): Promise<Float32Array>;

  /**
   * What the last step left at one tap of one layer, [tokens of the step][width of the tap]: a copy. Only for a runtime
   * loaded with taps, and for the points of tapPoints(config).
   */
  tap(name: TapName, layer: number): Float32Array | Int32Array;

  /** Where the first rank's time went since the start, by stage of the forward pass; waiting for other ranks is one. */
  stageTimes(): readonly StageTime[];

  /** Stops the ranks and frees the memories. */
  close(): Promise<void>;
}

export interface LoadProgress {
  readonly bytesRead: number;
  readonly bytesTotal: number;
}

/** What every backend is started with. */
export interface StartOptions {
  readonly config: ModelConfig;
  readonly tensors: ModelTensors;
  /** Paths of the model's files, as GgufTensor.file counts them. */
  readonly files: readonly string[];
  readonly recipes: Recipes;
  /** Kernel table by name; null: the fastest there is. */
  readonly isa: string | null;
  readonly threads: number;
  /** Float activations everywhere; rounded to bf16, as a GPU has them, to compare with. */
  readonly exact: boolean | 'bf16';
  readonly taps: boolean;
  readonly limits: RuntimeLimits;
  readonly onProgress: (progress: LoadProgress) => void;
}
