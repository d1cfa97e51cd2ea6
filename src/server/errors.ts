/** Every failure leaves the server in OpenAI's shape, with a sentence for people and never a stack trace. */
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify';
import { PerigeeError, perigeeError } from '../errors.ts';
import { bodyLimit } from './body.ts';
import { ClientLeft } from './in-flight.ts';

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

/** Seconds after which a client may try again, by status. The queue moves by whole generations, the engine loads slower. */
const retryAfter: Readonly<Record<number, number>> = { 429: 2, 503: 5 };

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

export function errorBody(error: PerigeeError): ErrorBody {
  return {
    error: {
      message: error.message,
      type: types[error.status] ?? 'server_error',
      param: error.param ?? null,
      code: wireCodes[error.code] ?? error.code.toLowerCase(),
    },
  };
}

/** Any thrown thing as an error of the catalogue: ours, Fastify's, or a fault nobody foresaw. */
export function asPerigeeError(error: unknown): PerigeeError {
  if (error instanceof PerigeeError) return error;
  const fastify = error as Partial<FastifyError>;
  const { code, statusCode, message } = fastify;
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE') return perigeeError('BODY_TOO_LARGE', { limit: bodyLimit });
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
    return perigeeError(
      'REQUEST_MALFORMED',
      { why: message ?? 'it is malformed' },
      { cause: error, param: fieldAtFault(fastify) },
    );
  }
  return perigeeError('SERVER_FAULT', {}, { cause: error });
}

/** Fastify's error handler, for what goes wrong before an answer has begun. */
export function handleError(thrown: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  // Nobody hears this any more; the status is for the log.
  if (thrown instanceof ClientLeft) return reply.code(499).send();
  const error = asPerigeeError(thrown);
  logFault(error, request);
  const seconds = retryAfter[error.status];
  if (seconds !== undefined) reply.header('retry-after', seconds);
  return reply.code(error.status).send(errorBody(error));
}

/** Only faults of ours are logged with their cause: what clients send may be private. */
export function logFault(error: PerigeeError, request: FastifyRequest): void {
  if (error.status >= 500) request.log.error({ code: error.code, err: error.cause ?? error }, error.message);
}

/** The field a schema of Fastify's complains about, "tokens.0". */
function fieldAtFault({ validation }: Partial<FastifyError>): string | undefined {
  const [first] = validation ?? [];
  const missing = first?.params.missingProperty;
  const path = first?.instancePath.split('/').slice(1) ?? [];
  return [...path, ...(typeof missing === 'string' ? [missing] : [])].join('.') || undefined;
}
