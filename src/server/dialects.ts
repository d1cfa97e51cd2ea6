/** How each API puts events and errors on the wire. Its path says which one a request speaks. */
import type { PerigeeError } from '../errors.ts';

export interface Dialect {
  readonly contentType: string;
  /** Sent into a silent stream; null: the format has nothing that means nothing. */
  readonly keepAlive: string | null;
  /** Ends a stream. */
  readonly end: string;
  /** One event of a stream; what `errorBody` returns is one as well. */
  frame(event: unknown): string;
  errorBody(error: PerigeeError, requestId?: string): object;
  /** The HTTP status of an error. */
  status(error: PerigeeError): number;
}

const types: Readonly<Record<number, string>> = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  404: 'not_found_error',
  405: 'invalid_request_error',
  408: 'timeout_error',
  413: 'invalid_request_error',
  415: 'invalid_request_error',
  429: 'rate_limit_error',
  503: 'overloaded_error',
};

/** Codes that clients know under another name than the catalogue's. */
const wireCodes: Readonly<Partial<Record<PerigeeError['code'], string>>> = {
  MAX_TOKENS_EXCEEDS_CONTEXT: 'context_length_exceeded',
  MODEL_UNKNOWN: 'model_not_found',
  API_KEY_WRONG: 'invalid_api_key',
};

const eventStream = 'text/event-stream; charset=utf-8';

export const openAi: Dialect = {
  contentType: eventStream,
  keepAlive: ': ping\n\n',
  end: 'data: [DONE]\n\n',
  frame: (event) => `data: ${JSON.stringify(event)}\n\n`,
  errorBody: (error) => ({
    error: {
      message: error.message,
      type: types[error.status] ?? 'server_error',
      param: error.param ?? null,
      code: wireCodes[error.code] ?? error.code.toLowerCase(),
    },
  }),
  status: (error) => error.status,
};

/** Anthropic's own: every event is named by its type, and message_stop is the end. */
export const anthropic: Dialect = {
  contentType: eventStream,
  keepAlive: 'event: ping\ndata: {"type":"ping"}\n\n',
  end: '',
  frame: (event) => `event: ${(event as { type: string }).type}\ndata: ${JSON.stringify(event)}\n\n`,
  errorBody: (error, requestId) => ({
    type: 'error',
    error: { type: anthropicType(error.status), message: error.message },
    request_id: requestId ?? null,
  }),
  // Their name for a server that cannot take requests now.
  status: (error) => (error.status === 503 ? 529 : error.status),
};

function anthropicType(status: number): string {
  if (status === 413) return 'request_too_large';
  return types[status] ?? 'api_error';
}

/** Ollama's: a JSON object a line. */
export const ollama: Dialect = {
  contentType: 'application/x-ndjson',
  keepAlive: null,
  end: '',
  frame: (event) => `${JSON.stringify(event)}\n`,
  errorBody: (error) => ({ error: error.message }),
  status: (error) => error.status,
};

/** The dialect of the route at `url`. */
export function dialectOf(url: string): Dialect {
  if (/^(\/anthropic)?\/v1\/messages\b/.test(url) || url.startsWith('/anthropic/')) return anthropic;
  return url.startsWith('/api/') ? ollama : openAi;
}
