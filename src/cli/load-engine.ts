/** From a path and options to a loaded model: the load path of every command that runs one. */
import { readFileSync } from 'node:fs';
import { createConstraints } from '../constrain/constraints.ts';
import type { LoadedEngine } from '../engine-process/load.ts';
import { perigeeError } from '../errors.ts';
import { openGguf } from '../gguf/open.ts';
import type { GgufModel } from '../gguf/types.ts';
import type { ModelConfig } from '../model/config.ts';
import { cacheBytesPerToken, modelNeeds } from '../model/fit.ts';
import { modelConfig } from '../model/gguf.ts';
import type { SyntheticModel } from '../model/synthetic.ts';
import { modelTensors } from '../model/tensors.ts';
import { cudaSupport } from '../runtime/cuda-addon.ts';
import { defaultBatchTokens, defaultContext, loadRuntime } from '../runtime/load.ts';
import { nativeSupport } from '../runtime/native-addon.ts';
import type { LoadProgress, Runtime } from '../runtime/runtime.ts';
import { detectMachine, type Machine } from '../select/machine.ts';
import { assertFits, renderMemoryTables } from '../select/memory-table.ts';
import { parseRules } from '../select/optimize-rules.ts';
import { type OptimizeWishes, optimizeWishes } from '../select/optimize-wishes.ts';
import { type Plan, selectBackend } from '../select/select.ts';
import type { EngineOptions } from './options.ts';

/** Plain data: it travels to the engine process. */
export interface LoadOptions extends EngineOptions {
  readonly model: string;
}

export interface OpenedModel {
  readonly gguf: GgufModel | SyntheticModel;
  readonly config: ModelConfig;
}

/** Reads the headers of the model at `path`. */
export async function openModel(path: string, options: Pick<EngineOptions, 'yarnBetaFast'> = {}): Promise<OpenedModel> {
  const gguf = await openGguf(path);
  return { gguf, config: modelConfig(gguf, { yarnBetaFast: options.yarnBetaFast }) };
}

export interface LoadedModel {
  readonly runtime: Runtime;
  readonly plan: Plan;
}

type SizeOptions = Pick<EngineOptions, 'context' | 'chunkSize' | 'maxBatchSize' | 'cacheTokens'>;

/** Requests of one engine that generate at once, unless an option says otherwise: beyond that more would only slow each. */
export const defaultBatchSize = 64;
/** The cache holds one full context, and more up to this size, so that many short requests find room beside a long one. */
const sharedCacheBytes = 256 << 20;

/** Tokens of a step where a GPU takes part: it reads weights once a step, and may fetch experts over the bus for it. */
const deviceBatchTokens = 4096;

/** How much of everything there is, in tokens. */
function sizesFor(config: ModelConfig, options: SizeOptions) {
  const { context, cacheTokens, chunkSize, maxBatchSize = 1 } = options;
  const contextTokens = Math.min(context ?? cacheTokens ?? defaultContext, config.context);
  const shared = Math.floor(sharedCacheBytes / cacheBytesPerToken(config));
  return {
    contextTokens,
    batchTokens: Math.min(chunkSize ?? defaultBatchTokens, contextTokens),
    sequences: maxBatchSize,
    cacheTokens: cacheTokens ?? Math.max(contextTokens, Math.min(maxBatchSize * contextTokens, shared)),
  };
}

/** The machine, with what the native addon says about it. */
export function thisMachine(): Machine {
  return detectMachine(nativeSupport(), cudaSupport());
}

/** The same for loading a model; the addon is left alone where WebAssembly is asked for. */
function machineFor(backend: string): Machine {
  const unseen = { available: false, why: 'it was not looked for' } as const;
  return backend === 'wasm' ? detectMachine(unseen, unseen) : thisMachine();
}

/** A plan and the sizes it was made for, in tokens. */
export interface SizedPlan {
  readonly plan: Plan;
  readonly sizes: ReturnType<typeof sizesFor>;
}

/** How the model would run here with these options, and what it needs where. Whether that fits is still to be asked. */
export function planModel({ gguf, config }: OpenedModel, options: EngineOptions): SizedPlan {
  const machine = machineFor(options.backend);
  const tensors = modelTensors(gguf, config);
  const { optimizeConfigPath } = options;
  const rules = optimizeConfigPath === undefined ? null : readRules(optimizeConfigPath, config);
  const planned = (chunkSize: number | undefined): SizedPlan => {
    const sizes = sizesFor(config, { ...options, ...(chunkSize !== undefined && { chunkSize }) });
    const use = { contextTokens: sizes.cacheTokens, sequences: 1, batchTokens: sizes.batchTokens };
    return { plan: selectBackend(machine, options, modelNeeds(config, tensors, use), rules), sizes };
  };
  const chosen = planned(options.chunkSize);
  if (options.chunkSize !== undefined || chosen.plan.devices === null) return chosen;
  const long = planned(deviceBatchTokens);
  const taken = long.plan.backend === chosen.plan.backend && long.plan.memory.every(({ fits }) => fits);
  return taken ? long : chosen;
}

function readRules(file: string, config: ModelConfig): OptimizeWishes {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : `${cause}`;
    throw perigeeError('RULES_INVALID', { file, why }, { cause });
  }
  return optimizeWishes(parseRules(file, text), config);
}

/** Chooses how the model runs here and loads its weights. Refuses before loading what does not fit. */
export async function loadModel(
  model: OpenedModel,
  options: EngineOptions & { readonly taps?: boolean; readonly profile?: boolean; readonly exact?: 'bf16' },
  onProgress: (progress: LoadProgress) => void,
): Promise<LoadedModel> {
  const { plan, sizes } = planModel(model, options);
  assertFits(plan.memory);
  const { gguf, config } = model;
  const runtime = await loadRuntime({
    gguf,
    config,
    ...('recipes' in gguf && { recipes: gguf.recipes }),
    backend: plan.backend,
    ...(plan.ranks !== null && { ranks: plan.ranks }),
    ...(plan.devices !== null && { cuda: { ...plan.devices, profile: options.profile ?? false } }),
    isa: plan.isa,
    threads: plan.threads,
    ...(plan.cpus !== null && { cpus: plan.cpus }),
    exact: options.exact ?? options.exactActivations ?? false,
    taps: options.taps ?? false,
    ...sizes,
    onProgress,
  });
  return { runtime, plan };
}

/** The LoadEngine of src/engine-process: for the engine process of `serve`, and for engines in this one. */
export async function loadEngine(
  options: LoadOptions,
  onProgress: (progress: LoadProgress) => void,
): Promise<LoadedEngine> {
  const shared = { ...options, maxBatchSize: options.maxBatchSize ?? defaultBatchSize };
  const { runtime, plan } = await loadModel(await openModel(options.model, options), shared, onProgress);
  const { backend, isa, threads, memory } = plan;
  const reasons = [...plan.reasons, ...(runtime.notes ?? []), ...renderMemoryTables(memory).split('\n')];
  const constraints = createConstraints({ tokenizer: options.model });
  return { runtime, selection: { backend, isa, threads, reasons }, constraints };
}
