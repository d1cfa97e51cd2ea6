/** Every failure leaves the server in the shape of its API, with a sentence for people and never a stack trace. */
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify';
import { PerigeeError, perigeeError } from '../errors.ts';
import { bodyLimit } from './body.ts';
import { dialectOf } from './dialects.ts';
import { ClientLeft } from './in-flight.ts';

/** Seconds after which a client may try again, by status. The queue moves by whole generations, the engine loads slower. */
const retryAfter: Readonly<Record<number, number>> = { 429: 2, 503: 5 };

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
  if (seconds !== undefined && !reply.hasHeader('retry-after')) reply.header('retry-after', seconds);
  const dialect = dialectOf(request.url);
  return reply.code(dialect.status(error)).send(dialect.errorBody(error, request.id));
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
