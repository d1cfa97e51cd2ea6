/**
 * What the front and the engine process say to each other, over Node's IPC channel with 'advanced' serialization (structured
 * clone: typed arrays, -Infinity and undefined survive). Plain data; never logits, never weights.
 *
 *   front  → engine:  load · submit · consumed · cancel · close
 *   engine → front:   progress · ready · events · statistics · request-failed · engine-failed
 *
 * Requests have numbers of the channel's own here: the ids in GenerationRequest come from clients and may repeat.
 */
import { type ErrorCode, PerigeeError, perigeeError } from '../errors.ts';
import type { ModelConfig } from '../model/config.ts';
import type { LoadProgress } from '../runtime/runtime.ts';
import type {
  EngineStatistics,
  EngineStatus,
  GenerationEvent,
  GenerationRequest,
  RequestLimits,
} from '../scheduler/types.ts';
import type { Weights } from './watchdog.ts';

export type Selection = NonNullable<EngineStatus['selection']>;

/** Events of one request that may be on their way or unread in the front; then the engine process waits for `consumed`. */
export const eventWindow = 128;

export type FrontMessage =
  | { readonly type: 'load'; readonly options: unknown; readonly limits: RequestLimits }
  | { readonly type: 'submit'; readonly id: number; readonly request: GenerationRequest }
  /** The consumer has read `count` more events of the request. */
  | { readonly type: 'consumed'; readonly id: number; readonly count: number }
  | { readonly type: 'cancel'; readonly id: number }
  | { readonly type: 'close' };

export type EngineMessage =
  | { readonly type: 'progress'; readonly progress: LoadProgress }
  | {
      readonly type: 'ready';
      readonly config: ModelConfig;
      readonly contextTokens: number;
      readonly selection: Selection;
      readonly weights: Weights;
    }
  /** All events of one turn of the engine's event loop. */
  | { readonly type: 'events'; readonly events: readonly RequestEvent[] }
  /** A few times a second while there is work, and once after. */
  | { readonly type: 'statistics'; readonly statistics: EngineStatistics }
  | { readonly type: 'request-failed'; readonly id: number; readonly error: WireError }
  /** The model could not be loaded, or the runtime is lost; the process ends itself after this. */
  | { readonly type: 'engine-failed'; readonly error: WireError };

export interface RequestEvent {
  readonly id: number;
  readonly event: GenerationEvent;
}

export interface WireError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly param: string | undefined;
}

/** An error as plain data. What is not from the catalogue is a fault of the engine. */
export function toWire(error: unknown): WireError {
  const known =
    error instanceof PerigeeError
      ? error
      : perigeeError('ENGINE_FAILED', { what: error instanceof Error ? error.message : String(error) });
  return { code: known.code, message: known.message, param: known.param };
}

export function fromWire(error: WireError): PerigeeError {
  return new PerigeeError(error.code, error.message, { param: error.param });
}
