/** What the engine and the worker with the grammars say to each other. All but `close` is answered once, in order. */
import type { ErrorCode } from '../errors.ts';
import type { ConstraintSpec, TokenMask, ToolConstraint, Unenforced } from './types.ts';

export type ToWorker =
  /** Compile a strict tool's grammar, so that the answer need not wait for it nor fail at it. */
  | { readonly type: 'compile'; readonly id: number; readonly tool: ToolConstraint }
  /** `tokens` were accepted before: by a worker that is no more. */
  | { readonly type: 'open'; readonly id: number; readonly spec: ConstraintSpec; readonly tokens: readonly number[] }
  | { readonly type: 'accept'; readonly id: number; readonly token: number }
  | { readonly type: 'close'; readonly id: number };

export type ToHost =
  | { readonly type: 'ready' }
  | { readonly type: 'compiled'; readonly id: number }
  /** Said before the answer that follows: the arguments of this tool begin, which is not strict. */
  | { readonly type: 'arguments'; readonly id: number; readonly tool: string }
  /** The answer to `open`, before its mask. */
  | { readonly type: 'opened'; readonly id: number; readonly unenforced: readonly Unenforced[] }
  | { readonly type: 'mask'; readonly id: number; readonly mask: TokenMask }
  | {
      readonly type: 'failed';
      readonly id: number;
      readonly code: ErrorCode;
      readonly message: string;
      readonly param: string | undefined;
    };
