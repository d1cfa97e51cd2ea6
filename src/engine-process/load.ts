/** The door through which an engine comes to be: choose a backend, load the weights. Given by src/runtime, or by a test. */
import type { Constraints } from '../constrain/types.ts';
import type { LoadProgress, Runtime } from '../runtime/runtime.ts';
import type { Selection } from './protocol.ts';

export interface LoadedEngine {
  readonly runtime: Runtime;
  readonly selection: Selection;
  /** Holds answers to schemas, for a model with a vocabulary. */
  readonly constraints?: Constraints;
}

/** `options` is plain data: it travels to the engine process as it is. */
export type LoadEngine<Options> = (
  options: Options,
  onProgress: (progress: LoadProgress) => void,
) => Promise<LoadedEngine>;
