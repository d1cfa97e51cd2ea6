/** What the engine and the worker with the grammars say to each other. Every `open` and `accept` is answered once, in order. */
import type { ErrorCode } from '../errors.ts';
import type { ConstraintSpec, TokenMask } from './types.ts';

export type ToWorker =
  /** `tokens` were accepted before: by a worker that is no more. */
  | { readonly type: 'open'; readonly id: number; readonly spec: ConstraintSpec; readonly tokens: readonly number[] }
  | { readonly type: 'accept'; readonly id: number; readonly token: number }
  | { readonly type: 'close'; readonly id: number };

export type ToHost =
  | { readonly type: 'ready' }
  | { readonly type: 'mask'; readonly id: number; readonly mask: TokenMask }
  | { readonly type: 'failed'; readonly id: number; readonly code: ErrorCode; readonly message: string };
