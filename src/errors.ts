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

  // --- model files --------------------------------------------------------------------------------------------------
  MODEL_NOT_FOUND: entry<{ path: string; why: string }>(500, 2, (d) => `No model at '${d.path}': ${d.why}. Give a .gguf file, the first part of a split one, or a folder that holds one model.`),
  GGUF_BAD_MAGIC: entry<{ file: string; found: string; hint: string }>(500, 2, (d) => `'${d.file}' is not a GGUF file: it starts with ${d.found}. ${d.hint}`),
  GGUF_BAD_VERSION: entry<{ file: string; version: string; hint: string }>(500, 2, (d) => `'${d.file}' is GGUF version ${d.version}; Perigee reads versions 2 and 3. ${d.hint}`),
  GGUF_TRUNCATED: entry<{ file: string; what: string; need: string; have: string }>(500, 2, (d) => `'${d.file}' ends too early: ${d.what} needs ${d.need} bytes, ${d.have} are left. The file is damaged or its download did not finish; fetch it again.`),
  GGUF_BAD_METADATA: entry<{ file: string; what: string }>(500, 2, (d) => `'${d.file}' has a malformed header: ${d.what}. Fetch or convert the file again.`),
  GGUF_BAD_TENSOR: entry<{ file: string; tensor: string; what: string }>(500, 2, (d) => `'${d.file}': tensor ${d.tensor} ${d.what}. The file is damaged or made for another program; fetch or convert it again.`),
  GGUF_UNSUPPORTED_TYPE: entry<{ file: string; tensor: string; type: string; supported: string }>(500, 2, (d) => `'${d.file}': tensor ${d.tensor} is stored as ${d.type}, which Perigee does not read. Use a file in one of ${d.supported}.`),
  GGUF_BAD_SPLIT: entry<{ what: string }>(500, 2, (d) => `This split model is incomplete or mixed up: ${d.what}.`),
  GGUF_WRITE_FAILED: entry<{ path: string; why: string }>(500, 1, (d) => `'${d.path}' could not be written: ${d.why}. Nothing was left behind under that name.`),
  MODEL_UNSUPPORTED: entry<{ what: string }>(500, 2, (d) => `Perigee cannot run this model: ${d.what}. It runs the DeepSeek-V3 family (Kimi K2, DeepSeek V2 and V3, Moonlight), GGUF architecture 'deepseek2'.`),
  MODEL_BAD_CONFIG: entry<{ key: string; found: string; expected: string }>(500, 2, (d) => `The model's metadata cannot be right: ${d.key} is ${d.found}, expected ${d.expected}. Fetch or convert the file again.`),
  MODEL_BAD_TENSOR: entry<{ tensor: string; found: string; expected: string }>(500, 2, (d) => `The model's tensors do not agree with its metadata: ${d.tensor} is ${d.found}, expected ${d.expected}. Fetch or convert the file again.`),
  MODEL_DOES_NOT_FIT: entry<{ need: string; have: string; table: string; advice: string }>(500, 2, (d) => `The model does not fit in memory: it needs ${d.need}, ${d.have} are available.\n${d.table}\n${d.advice}`),
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
