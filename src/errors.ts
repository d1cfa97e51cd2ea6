/**
 * The catalogue of errors. Every failure a user can meet has a code, an HTTP status, an exit code and a sentence that says
 * what was wrong, with the value, and what to do.
 *
 * Exit codes: 1 failed, 2 the request cannot work as given (bad file, does not fit, bad option).
 */

interface Entry<Details> {
  readonly status: number;
  readonly exit: 1 | 2;
  readonly say: (details: Details) => string;
}

function entry<Details>(status: number, exit: 1 | 2, say: (details: Details) => string): Entry<Details> {
  return { status, exit, say };
}

export const catalogue = {
  // --- engine and runtime -------------------------------------------------------------------------------------------
  ENGINE_FAILED: entry<{ what: string }>(500, 1, (d) => `The engine failed: ${d.what}. It is being started again; send the request once more.`),
  BACKEND_UNAVAILABLE: entry<{ backend: string; why: string }>(500, 2, (d) => `Backend '${d.backend}' cannot run here: ${d.why}. Use --backend auto to let Perigee choose.`),
} as const;

export type ErrorCode = keyof typeof catalogue;
export type ErrorDetails<Code extends ErrorCode> = (typeof catalogue)[Code] extends Entry<infer Details> ? Details : never;

/** A failure with a code from the catalogue. `message` is the sentence for people. */
export class PerigeeError extends Error {
  readonly code: ErrorCode;
  /** The request field at fault, for API errors ("messages.0.content"). */
  readonly param: string | undefined;

  constructor(code: ErrorCode, message: string, options: { cause?: unknown; param?: string | undefined } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'PerigeeError';
    this.code = code;
    this.param = options.param;
  }

  get status(): number {
    return catalogue[this.code].status;
  }

  get exitCode(): 1 | 2 {
    return catalogue[this.code].exit;
  }
}

/** Builds the error `code` from its details: `throw perigeeError('GGUF_BAD_MAGIC', { file, found })`. */
export function perigeeError<Code extends ErrorCode>(
  code: Code,
  details: ErrorDetails<Code>,
  options: { cause?: unknown; param?: string | undefined } = {},
): PerigeeError {
  const say = catalogue[code].say as (details: ErrorDetails<Code>) => string;
  return new PerigeeError(code, say(details), options);
}
