/** Loads a model onto a backend: the one way to a Runtime. */
import type { GgufModel } from '../gguf/types.ts';
import type { ModelConfig } from '../model/config.ts';
import { modelTensors } from '../model/tensors.ts';
import type { DevicePlacement } from '../select/placement.ts';
import { coreFile } from './assets.ts';
import { startCuda } from './cuda-runtime.ts';
import { startNativeExperts, startWasmExperts } from './expert-ranks.ts';
import { startHybrid } from './hybrid-runtime.ts';
import { startNative } from './native-runtime.ts';
import { memoryLimit, type Recipes } from './place.ts';
import { type LoadProgress, pageTokens, type Runtime } from './runtime.ts';
import { startWasm } from './wasm-runtime.ts';

export interface LoadOptions {
  readonly gguf: GgufModel;
  readonly config: ModelConfig;
  /** How to make the bytes of a synthetic model; null: they are in the files. */
  readonly recipes?: Recipes;
  readonly backend: Runtime['backend'];
  /** Hybrid: what computes the routed experts. */
  readonly ranks?: 'wasm' | 'native';
  /** Hybrid and cuda: what is on which device; `profile` gives times of stages instead of graphs. */
  readonly cuda?: DevicePlacement & { readonly profile?: boolean };
  /** Kernel table of the ranks by name; null: the fastest of the backend. */
  readonly isa?: string | null;
  /** Ranks; 0 where the devices do everything. */
  readonly threads: number;
  /** Native: the CPU each rank is pinned to, [threads]; default: where the system puts it. */
  readonly cpus?: readonly number[];
  /** Float activations everywhere, also rounded to bf16: slow, for reference runs. */
  readonly exact?: boolean | 'bf16';
  /** Positions one sequence may have; default: what the model was trained for, at most `defaultContext`. */
  readonly contextTokens?: number;
  /** Most sequences of one step; default 1. */
  readonly sequences?: number;
  /** Positions the KV pages hold, for all sequences together; default: one full context. */
  readonly cacheTokens?: number;
  /** Most tokens of one step; default `defaultBatchTokens`. */
  readonly batchTokens?: number;
  /** Keep the activations between stages of the last step, for Runtime.tap; costs memory and a little time. */
  readonly taps?: boolean;
  /** WASM: path of the compiled core, for tests that bring a broken one; default: the build that has the table. */
  readonly core?: string;
  /** Most bytes of one weight memory; default, and at most, what WebAssembly allows. */
  readonly shardBytes?: number;
  readonly onProgress?: (progress: LoadProgress) => void;
}

/** Enough for long chats, small enough for every machine; --context raises it. */
export const defaultContext = 8192;
/** Each expert of the family's models sees dozens of tokens per step, and activations stay a fraction of the weights. */
export const defaultBatchTokens = 256;
/** Logits kept at once, so that scoring a large vocabulary stays within this many bytes. */
const logitsBytes = 64 << 20;

export async function loadRuntime(options: LoadOptions): Promise<Runtime> {
  const { gguf, config } = options;
  const context = Math.min(options.contextTokens ?? Math.min(config.context, defaultContext), config.context);
  const batchTokens = Math.min(options.batchTokens ?? defaultBatchTokens, context);
  const batchOutputs = Math.max(1, Math.min(batchTokens, Math.floor(logitsBytes / 4 / config.vocabulary)));
  const model = {
    config,
    tensors: modelTensors(gguf, config),
    files: options.recipes ? [] : gguf.files.map(({ path }) => path),
    recipes: options.recipes ?? null,
    isa: options.isa ?? null,
    threads: options.threads,
    exact: options.exact ?? false,
    taps: options.taps ?? false,
    limits: {
      batchTokens,
      batchOutputs,
      batchSequences: options.sequences ?? 1,
      pages: Math.ceil((options.cacheTokens ?? context) / pageTokens),
      context,
    },
    onProgress: options.onProgress ?? (() => {}),
  };
  const native = { ...model, cpus: options.cpus ?? [] };
  const wasm = {
    ...model,
    // Every table but "relaxed" is in the build that runs everywhere.
    core: options.core ?? coreFile((options.isa ?? 'relaxed') === 'relaxed' ? 'relaxed' : 'simd128'),
    shardBytes: options.shardBytes ?? memoryLimit,
  };
  if (options.backend === 'native') return startNative(native);
  if (options.backend === 'wasm') return startWasm(wasm);
  const { profile = false, ...placement } = options.cuda ?? { parts: [], residentExperts: [] };
  const device = { ...model, placement, profile };
  if (options.backend === 'cuda') return startCuda(device);
  return startHybrid({
    ...device,
    startRanks: (onProgress) =>
      options.ranks === 'wasm'
        ? startWasmExperts({ ...wasm, onProgress })
        : startNativeExperts({ ...native, onProgress }),
  });
}
