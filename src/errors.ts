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
  ENGINE_FAILED: entry<{ what: string }>(
    500,
    1,
    (d) => `The engine failed: ${d.what}. It is being started again; send the request once more.`,
  ),
  MODEL_SHAPE_REFUSED: entry<{ name: string }>(
    500,
    2,
    (d) =>
      `The engine cannot run the shape of ${d.name}: a dimension is zero, odd where it must be even, or beyond its bounds. 'perigee inspect' shows the numbers.`,
  ),
  CONTEXT_TOO_LARGE: entry<{ context: number; bytes: number; most: number }>(
    500,
    2,
    (d) =>
      `A context of ${d.context} tokens needs ${(d.bytes / 1e9).toFixed(1)} GB of working memory, and this backend has at most ${(d.most / 1e9).toFixed(1)} GB. Ask for less with --context.`,
  ),
  MATRIX_TOO_LARGE: entry<{ bytes: number; most: number }>(
    500,
    2,
    (d) =>
      `One matrix needs ${d.bytes} bytes in a weight memory that has ${d.most}. Use more --threads, so that each holds fewer of its rows.`,
  ),
  MODEL_FILE_SHRANK: entry<{ path: string; position: number }>(
    500,
    2,
    (d) =>
      `${d.path} ended at byte ${d.position} while it was being read: it has become shorter since it was opened. Copy the file again.`,
  ),
  BACKEND_UNAVAILABLE: entry<{ backend: string; why: string }>(
    500,
    2,
    (d) => `Backend '${d.backend}' cannot run here: ${d.why}. Use --backend auto to let Perigee choose.`,
  ),

  // --- model files --------------------------------------------------------------------------------------------------
  MODEL_NOT_FOUND: entry<{ path: string; why: string }>(
    500,
    2,
    (d) =>
      `No model at '${d.path}': ${d.why}. Give a .gguf file, the first part of a split one, or a folder that holds one model.`,
  ),
  GGUF_BAD_MAGIC: entry<{ file: string; found: string; hint: string }>(
    500,
    2,
    (d) => `'${d.file}' is not a GGUF file: it starts with ${d.found}. ${d.hint}`,
  ),
  GGUF_BAD_VERSION: entry<{ file: string; version: string; hint: string }>(
    500,
    2,
    (d) => `'${d.file}' is GGUF version ${d.version}; Perigee reads versions 2 and 3. ${d.hint}`,
  ),
  GGUF_TRUNCATED: entry<{ file: string; what: string; need: string; have: string }>(
    500,
    2,
    (d) =>
      `'${d.file}' ends too early: ${d.what} needs ${d.need} bytes, ${d.have} are left. The file is damaged or its download did not finish; fetch it again.`,
  ),
  GGUF_BAD_METADATA: entry<{ file: string; what: string }>(
    500,
    2,
    (d) => `'${d.file}' has a malformed header: ${d.what}. Fetch or convert the file again.`,
  ),
  GGUF_BAD_TENSOR: entry<{ file: string; tensor: string; what: string }>(
    500,
    2,
    (d) =>
      `'${d.file}': tensor ${d.tensor} ${d.what}. The file is damaged or made for another program; fetch or convert it again.`,
  ),
  GGUF_UNSUPPORTED_TYPE: entry<{ file: string; tensor: string; type: string; supported: string }>(
    500,
    2,
    (d) =>
      `'${d.file}': tensor ${d.tensor} is stored as ${d.type}, which Perigee does not read. Use a file in one of ${d.supported}.`,
  ),
  GGUF_BAD_SPLIT: entry<{ what: string }>(500, 2, (d) => `This split model is incomplete or mixed up: ${d.what}.`),
  GGUF_WRITE_FAILED: entry<{ path: string; why: string }>(
    500,
    1,
    (d) => `'${d.path}' could not be written: ${d.why}. Nothing was left behind under that name.`,
  ),
  MODEL_UNSUPPORTED: entry<{ what: string }>(
    500,
    2,
    (d) =>
      `Perigee cannot run this model: ${d.what}. It runs the DeepSeek-V3 family (Kimi K2, DeepSeek V2 and V3, Moonlight), GGUF architecture 'deepseek2'.`,
  ),
  MODEL_BAD_CONFIG: entry<{ key: string; found: string; expected: string }>(
    500,
    2,
    (d) =>
      `The model's metadata cannot be right: ${d.key} is ${d.found}, expected ${d.expected}. Fetch or convert the file again.`,
  ),
  MODEL_BAD_TENSOR: entry<{ tensor: string; found: string; expected: string }>(
    500,
    2,
    (d) =>
      `The model's tensors do not agree with its metadata: ${d.tensor} is ${d.found}, expected ${d.expected}. Fetch or convert the file again.`,
  ),
  MODEL_DOES_NOT_FIT: entry<{ place: string; need: string; have: string; table: string; advice: string }>(
    500,
    2,
    (d) => `The model does not fit ${d.place}: it needs ${d.need}, ${d.have} are available.\n${d.table}\n${d.advice}`,
  ),

  // --- scheduler and engine process ---------------------------------------------------------------------------------
  QUEUE_FULL: entry<{ waiting: number }>(
    429,
    1,
    (d) =>
      `The server is busy: ${d.waiting} requests wait already, which is as many as may. Send the request again in a while.`,
  ),
  DEADLINE_EXCEEDED: entry<{ seconds: number }>(
    503,
    1,
    (d) =>
      `The request took longer than the ${d.seconds} seconds that this server allows. Ask for fewer tokens, or send it again when the server is less busy.`,
  ),
  CONTEXT_LENGTH_EXCEEDED: entry<{ promptTokens: number; contextTokens: number }>(
    400,
    2,
    (d) =>
      `The prompt has ${d.promptTokens} tokens; the context holds ${d.contextTokens}, of which at least one must be left for the answer. Shorten the prompt, or start the server with a larger context.`,
  ),
  PROMPT_EMPTY: entry<Record<never, never>>(400, 2, () => 'The prompt has no tokens. Send some text.'),
  TOKEN_OUT_OF_RANGE: entry<{ token: number; vocabulary: number }>(
    400,
    2,
    (d) => `Token id ${d.token} does not exist; this model has ids 0 to ${d.vocabulary - 1}.`,
  ),
  MAX_TOKENS_INVALID: entry<{ maxTokens: number }>(
    400,
    2,
    (d) => `The number of tokens to generate is ${d.maxTokens}; it must be a whole number of at least 1.`,
  ),
  ENGINE_LOADING: entry<{ percent: number }>(
    503,
    1,
    (d) => `The model is being loaded (${d.percent} % read). Send the request again in a while.`,
  ),
  ENGINE_GAVE_UP: entry<{ failures: number; what: string }>(
    503,
    1,
    (d) =>
      `The engine died ${d.failures} times in a row and is not started again. Last failure: ${d.what}. Read the log, then restart the server.`,
  ),
  ENGINE_CLOSED: entry<Record<never, never>>(
    503,
    1,
    () =>
      'The server is shutting down and takes no more requests. Send the request to another server, or again when it is back.',
  ),

  // --- tokenizer and sampling ---------------------------------------------------------------------------------------
  TOKENIZER_NOT_FOUND: entry<{ path: string; missing: string }>(
    500,
    2,
    (d) =>
      `No tokenizer in '${d.path}': ${d.missing} is missing. Give a GGUF file, or a folder with tiktoken.model and tokenizer_config.json.`,
  ),
  TOKENIZER_UNSUPPORTED: entry<{ file: string; found: string }>(
    500,
    2,
    (d) =>
      `'${d.file}' has a tokenizer that Perigee does not know: ${d.found}. It reads Kimi K2's, which is model 'gpt2', pre 'kimi-k2' in GGUF files.`,
  ),
  TOKENIZER_BAD_CONFIG: entry<{ file: string; what: string }>(
    500,
    2,
    (d) => `'${d.file}' cannot be used: ${d.what}. Fetch the file again.`,
  ),
  VOCABULARY_BAD: entry<{ file: string; what: string }>(
    500,
    2,
    (d) => `The vocabulary in '${d.file}' cannot be used: ${d.what}. Fetch or convert the file again.`,
  ),
  NO_TOKEN_ALLOWED: entry<Record<never, never>>(
    400,
    1,
    () =>
      'No token can be chosen: every logit is -infinity or not a number. Forbid fewer tokens with logit_bias; without any, the model is damaged.',
  ),

  // --- constrained answers ------------------------------------------------------------------------------------------
  SCHEMA_INVALID: entry<{ where: string; why: string }>(
    400,
    2,
    (d) => `The JSON Schema cannot be used: at ${d.where}, ${d.why}. Correct the schema.`,
  ),
  SCHEMA_UNSUPPORTED: entry<{ where: string; keyword: string; why: string }>(
    400,
    2,
    (d) =>
      `The JSON Schema has '${d.keyword}' at ${d.where}, which answers cannot be held to: ${d.why}. Leave it out, or say it in the description.`,
  ),
  SCHEMA_TOO_COSTLY: entry<{ why: string }>(
    400,
    2,
    (d) => `The JSON Schema takes too much to enforce: ${d.why}. Simplify it.`,
  ),
  CONSTRAINT_UNAVAILABLE: entry<{ why: string }>(
    400,
    2,
    (d) => `Answers of this model cannot be constrained: ${d.why}. Ask without response_format and tool_choice.`,
  ),
  CONSTRAINT_FAILED: entry<{ what: string }>(
    500,
    1,
    (d) => `The answer could not be held to its schema: ${d.what}. Send the request again.`,
  ),

  // --- HTTP server --------------------------------------------------------------------------------------------------
  BODY_NOT_JSON: entry<{ why: string }>(
    400,
    2,
    (d) => `The request body cannot be used: ${d.why}. Send a JSON object with content-type application/json.`,
  ),
  BODY_TOO_DEEP: entry<{ limit: number }>(
    400,
    2,
    (d) => `The request body nests deeper than ${d.limit} levels. Flatten it.`,
  ),
  BODY_TOO_LARGE: entry<{ limit: number }>(
    413,
    2,
    (d) => `The request body is larger than ${d.limit} bytes. Send a smaller one.`,
  ),
  BODY_WRONG_TYPE: entry<{ type: string }>(
    415,
    2,
    (d) => `The request body is sent as '${d.type}'. Send it with content-type application/json.`,
  ),
  REQUEST_MALFORMED: entry<{ why: string }>(400, 2, (d) => `The request cannot be read: ${d.why}.`),
  REQUEST_TOO_SLOW: entry<Record<never, never>>(
    408,
    1,
    () => 'The request did not arrive in time: 20 seconds for its headers, two minutes for all of it. Send it again.',
  ),
  HEADERS_TOO_LARGE: entry<Record<never, never>>(
    431,
    2,
    () => "The request's headers are larger than 16 kB together. Send smaller ones.",
  ),
  ROUTE_UNKNOWN: entry<{ method: string; path: string }>(
    404,
    2,
    (d) =>
      `There is no ${d.method} ${d.path} here. Chat is at POST /v1/chat/completions; GET /health shows the state of the server.`,
  ),
  METHOD_NOT_ALLOWED: entry<{ method: string; path: string; allowed: string }>(
    405,
    2,
    (d) => `${d.path} does not take ${d.method}. Use ${d.allowed}.`,
  ),
  MODEL_UNKNOWN: entry<{ model: string; served: string }>(
    404,
    2,
    (d) => `The model '${d.model}' is not served here. This server has '${d.served}'.`,
  ),
  API_KEY_WRONG: entry<Record<never, never>>(
    401,
    2,
    () => "The API key is missing or wrong. Send it as 'authorization: Bearer KEY' or 'x-api-key: KEY'.",
  ),
  API_KEY_WRONG_OFTEN: entry<{ seconds: number }>(
    429,
    1,
    (d) => `Too many wrong API keys came from this address. Send the right one, or wait ${d.seconds} seconds.`,
  ),
  HOST_NEEDS_KEY: entry<{ host: string }>(
    500,
    2,
    (d) =>
      `Listening on ${d.host} would open the server to the network without a key. Add --api_key KEY, or --insecure if the network is trusted.`,
  ),
  SERVER_FAULT: entry<Record<never, never>>(
    500,
    1,
    () => 'The server failed to handle this request. The log has the cause under the request id.',
  ),

  // --- convert ------------------------------------------------------------------------------------------------------
  CONVERT_NO_CONFIG: entry<{ folder: string }>(
    500,
    2,
    (d) =>
      `'${d.folder}' has no config.json, so it is not a Hugging Face checkpoint. Give the folder that holds config.json and the safetensors files.`,
  ),
  CONVERT_BAD_JSON: entry<{ file: string; why: string }>(
    500,
    2,
    (d) => `'${d.file}' cannot be read as JSON: ${d.why}. Fetch the file again.`,
  ),
  CONVERT_CONFIG_FIELD: entry<{ file: string; field: string }>(
    500,
    2,
    (d) => `'${d.file}' lacks '${d.field}', which conversion needs. Use the config.json published with the checkpoint.`,
  ),
  CONVERT_UNSUPPORTED: entry<{ file: string; field: string; value: string; supported: string }>(
    500,
    2,
    (d) => `'${d.file}': ${d.field} is ${d.value}; Perigee converts ${d.supported}.`,
  ),
  CONVERT_NO_WEIGHTS: entry<{ folder: string }>(
    500,
    2,
    (d) =>
      `'${d.folder}' has neither model.safetensors nor model.safetensors.index.json. Download the checkpoint's safetensors files into it.`,
  ),
  CONVERT_SHARD_MISSING: entry<{ folder: string; shard: string }>(
    500,
    2,
    (d) => `'${d.folder}' lacks ${d.shard}, which its index names. Download that file.`,
  ),
  CONVERT_BAD_SAFETENSORS: entry<{ file: string; why: string }>(
    500,
    2,
    (d) => `'${d.file}' is not a sound safetensors file: ${d.why}. Its download may not have finished; fetch it again.`,
  ),
  CONVERT_TENSOR_MISSING: entry<{ folder: string; tensor: string }>(
    500,
    2,
    (d) =>
      `The checkpoint in '${d.folder}' lacks tensor ${d.tensor}, which its config.json implies. Check that every file of the checkpoint is there.`,
  ),
  CONVERT_TENSOR_EXTRA: entry<{ folder: string; count: number; tensor: string }>(
    500,
    2,
    (d) =>
      `The checkpoint in '${d.folder}' has ${d.count} tensors that the architecture does not explain, the first is ${d.tensor}. Dropping them would change the model, so nothing was converted.`,
  ),
  CONVERT_TENSOR_SHAPE: entry<{ tensor: string; found: string; expected: string }>(
    500,
    2,
    (d) =>
      `Tensor ${d.tensor} has shape [${d.found}]; config.json implies [${d.expected}]. config.json and weights belong to different models.`,
  ),
  CONVERT_DTYPE: entry<{ tensor: string; dtype: string; supported: string }>(
    500,
    2,
    (d) => `Tensor ${d.tensor} is stored as ${d.dtype}; Perigee converts ${d.supported}.`,
  ),
  CONVERT_TOKENIZER: entry<{ file: string; why: string }>(
    500,
    2,
    (d) => `The tokenizer in '${d.file}' cannot be converted: ${d.why}.`,
  ),
  CONVERT_NOT_FINITE: entry<{ tensor: string }>(
    500,
    2,
    (d) =>
      `Tensor ${d.tensor} has a NaN or an infinity among its weights. Its download is damaged, or the checkpoint is; fetch it again.`,
  ),

  // --- selector and command line ------------------------------------------------------------------------------------
  ISA_UNAVAILABLE: entry<{ isa: string; why: string }>(
    500,
    2,
    (d) => `Kernel set '${d.isa}' cannot run here: ${d.why}. Leave --isa out to let Perigee choose.`,
  ),
  OPTION_INVALID: entry<{ option: string; value: string; expected: string }>(
    500,
    2,
    (d) => `${d.option} is '${d.value}'; it must be ${d.expected}.`,
  ),
  INPUT_UNREADABLE: entry<{ file: string; why: string }>(500, 2, (d) => `'${d.file}' cannot be used: ${d.why}.`),
  OUTPUT_UNWRITABLE: entry<{ path: string; why: string }>(500, 1, (d) => `'${d.path}' could not be written: ${d.why}.`),
  PORT_UNAVAILABLE: entry<{ host: string; port: number; why: string }>(
    500,
    1,
    (d) => `${d.host}:${d.port} cannot be listened on: ${d.why}. Choose another with --port.`,
  ),
  CONFIG_UNREADABLE: entry<{ file: string; why: string }>(
    500,
    2,
    (d) =>
      `The configuration file '${d.file}' cannot be used: ${d.why}. It is YAML with one option a line, named as on the command line without the dashes (threads: 4).`,
  ),

  RULES_INVALID: entry<{ file: string; why: string }>(
    500,
    2,
    (d) =>
      `The optimize rules in '${d.file}' cannot be used: ${d.why}. Correct the file, or leave --optimize-config-path out: parts are then placed by what fits.`,
  ),

  // --- chat ---------------------------------------------------------------------------------------------------------
  TEMPLATE_INVALID: entry<{ why: string }>(
    500,
    2,
    (d) =>
      `The model's chat template cannot be read: ${d.why}. Use a model file with a sound template, or with none: then Kimi K2's own format is used.`,
  ),
  TEMPLATE_FAILED: entry<{ why: string }>(
    500,
    1,
    (d) =>
      `The model's chat template failed on this conversation: ${d.why}. Use a model file with a sound template, or with none: then Kimi K2's own format is used.`,
  ),
  TEMPLATE_UNBOUNDED: entry<{ limit: string }>(
    500,
    1,
    (d) =>
      `The model's chat template was stopped: it took ${d.limit}. Use a model file with a sound template, or with none: then Kimi K2's own format is used.`,
  ),
  TEMPLATE_REFUSED: entry<{ why: string }>(
    400,
    2,
    (d) => `The model's chat template does not accept this conversation: ${d.why}. Change the messages accordingly.`,
  ),
  MAX_TOKENS_EXCEEDS_CONTEXT: entry<{ promptTokens: number; maxTokens: number; contextTokens: number }>(
    400,
    2,
    (d) =>
      `The prompt has ${d.promptTokens} tokens and the answer may have ${d.maxTokens}, together ${d.promptTokens + d.maxTokens}; the context holds ${d.contextTokens}. Lower max_tokens to ${d.contextTokens - d.promptTokens} or leave it out, or shorten the prompt.`,
  ),

  // --- API ----------------------------------------------------------------------------------------------------------
  FIELD_INVALID: entry<{ field: string; expected: string; found: string }>(
    400,
    2,
    (d) => `'${d.field}' must be ${d.expected}; it is ${d.found}.`,
  ),
  FIELD_UNSUPPORTED: entry<{ field: string; value: string; advice: string }>(
    400,
    2,
    (d) => `'${d.field}' is ${d.value}, which this server does not support. ${d.advice}`,
  ),
} as const;

export type ErrorCode = keyof typeof catalogue;
export type ErrorDetails<Code extends ErrorCode> =
  (typeof catalogue)[Code] extends Entry<infer Details> ? Details : never;

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
