/** The engine in this very process: for run, score, tests and Perigee as a library. */
import type { LoadProgress } from '../runtime/runtime.ts';
import { createScheduler } from '../scheduler/scheduler.ts';
import type { EngineClient, RequestLimits } from '../scheduler/types.ts';
import type { LoadEngine } from './load.ts';

export interface LocalEngineOptions<Options> {
  readonly loadEngine: LoadEngine<Options>;
  readonly loadOptions: Options;
  readonly limits?: RequestLimits;
  readonly onProgress?: (progress: LoadProgress) => void;
}

/** Loads the model and resolves when it can generate. */
export async function startLocalEngine<Options>(options: LocalEngineOptions<Options>): Promise<EngineClient> {
  const { runtime, selection, constraints } = await options.loadEngine(
    options.loadOptions,
    options.onProgress ?? (() => {}),
  );
  return createScheduler(runtime, { ...options.limits, selection, constraints });
}
