/** What the routes of all APIs have in common: an answer's identity, and how its events go out. */
import { createHash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { ChatFinished, ChatStreamEvent } from '../../api/complete.ts';
import type { TextEvent, TextFinished } from '../../api/complete-text.ts';
import type { Indexed } from '../../api/merge.ts';
import type { CompletionIdentity } from '../../api/openai/to-chunks.ts';
import { AnswerStream } from '../answer-stream.ts';
import { dialectOf } from '../dialects.ts';
import { asPerigeeError, logFault } from '../errors.ts';
import { ClientLeft } from '../in-flight.ts';
import type { ServerOptions } from '../options.ts';

/**
 * How long a stream waits for its first event before it sends the headers regardless, so that pings keep the connection
 * through a long queue. A full queue and a prompt that does not fit are told at once, thus with a status of their own.
 */
const headerMilliseconds = 10_000;

/** Throws what goes wrong before the headers; after them it becomes the last event. */
export async function sendStream(
  chunks: AsyncGenerator<unknown, void, void>,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<void> {
  const first = chunks.next();
  const waited = new AbortController();
  await Promise.race([first, sleep(headerMilliseconds, undefined, { signal: waited.signal })]).finally(() =>
    waited.abort(),
  );
  const dialect = dialectOf(request.url);
  const stream = new AnswerStream(reply, dialect);
  try {
    for (let next = await first; !next.done; next = await chunks.next()) await stream.send(next.value);
  } catch (error) {
    if (error instanceof ClientLeft) return;
    const known = asPerigeeError(error);
    logFault(known, request);
    await stream.send(dialect.errorBody(known, request.id));
  }
  await stream.done();
}

/** `kind`: what the id begins with. */
export function newIdentity(kind: 'chatcmpl' | 'cmpl', { engine, model }: ServerOptions): CompletionIdentity {
  const { selection } = engine.status();
  const configuration = JSON.stringify([model.id, selection?.backend, selection?.isa]);
  return {
    id: `${kind}-${randomBytes(16).toString('hex')}`,
    created: Math.floor(Date.now() / 1000),
    model: model.id,
    // Changes when another model or backend answers.
    fingerprint: `fp_${createHash('sha256').update(configuration).digest('hex').slice(0, 10)}`,
  };
}

/** Passes events through and notes the measures of each answer, never its words, and once what its schemas ask in vain. */
export async function* logged<Event extends ChatStreamEvent | TextEvent>(
  events: AsyncIterable<Indexed<Event>>,
  request: FastifyRequest,
): AsyncGenerator<Indexed<Event>> {
  let told = false;
  for await (const indexed of events) {
    const [choice, event] = indexed;
    if (event.type === 'started' && event.unenforced !== undefined && !told) {
      told = true;
      request.log.warn({ unenforced: event.unenforced }, 'answers are not held to some keywords of their schemas');
    }
    if (event.type === 'finished') request.log.info({ choice, ...measures(event) }, 'generated');
    yield indexed;
  }
}

function measures(finished: ChatFinished | TextFinished) {
  const { reason, promptTokens, cachedTokens, completionTokens } = finished;
  const { queueMilliseconds, promptMilliseconds, decodeMilliseconds } = finished.timing;
  const times = { queueMilliseconds, promptMilliseconds, decodeMilliseconds };
  return { reason, promptTokens, cachedTokens, completionTokens, ...times };
}
