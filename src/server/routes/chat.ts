/** POST /v1/chat/completions: reads the request, runs the chat, sends the answer whole or in pieces. */
import { createHash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { type ChatFinished, type ChatStreamEvent, chat } from '../../api/complete.ts';
import { type ChatCompletionChunk, type CompletionIdentity, toChunks } from '../../api/openai/to-chunks.ts';
import { type ChatCompletion, toCompletion } from '../../api/openai/to-completion.ts';
import { toChatRequest } from '../../api/openai/to-request.ts';
import { asPerigeeError, errorBody, logFault } from '../errors.ts';
import { ClientLeft, type InFlight } from '../in-flight.ts';
import type { ServedModel, ServerOptions } from '../options.ts';
import { SseStream } from '../sse.ts';
import { checkModel } from './models.ts';

/**
 * How long a stream waits for its first event before it sends the headers regardless, so that pings keep the connection
 * through a long queue. A full queue and a prompt that does not fit are told at once, thus with a status of their own.
 */
const headerMilliseconds = 10_000;

export function chatRoutes(app: FastifyInstance, options: ServerOptions, inFlight: InFlight): void {
  const { engine, tokenizer, model, sampling } = options;
  app.post('/v1/chat/completions', async (request, reply): Promise<ChatCompletion | FastifyReply> => {
    const wanted = toChatRequest(request.body, { tokenizer, ...(sampling && { defaults: sampling }) });
    if (wanted.model !== undefined) checkModel(wanted.model, model);
    const signal = inFlight.open(reply);
    const events = logged(chat(engine, tokenizer, wanted.request, signal), request);
    const identity = newIdentity(model, options);
    if (!wanted.stream) return toCompletion(events, identity);
    await sendStream(toChunks(events, identity, { includeUsage: wanted.includeUsage }), request, reply);
    return reply;
  });
}

/** Throws what goes wrong before the headers; after them it becomes the last event. */
async function sendStream(
  chunks: AsyncGenerator<ChatCompletionChunk, void, void>,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<void> {
  const first = chunks.next();
  const waited = new AbortController();
  await Promise.race([first, sleep(headerMilliseconds, undefined, { signal: waited.signal })]).finally(() =>
    waited.abort(),
  );
  const stream = new SseStream(reply);
  try {
    for (let next = await first; !next.done; next = await chunks.next()) await stream.send(next.value);
  } catch (error) {
    if (error instanceof ClientLeft) return;
    const known = asPerigeeError(error);
    logFault(known, request);
    await stream.send(errorBody(known));
  }
  await stream.done();
}

/** Passes a chat through and notes its measures, never its words. */
async function* logged(
  events: AsyncIterable<ChatStreamEvent>,
  request: FastifyRequest,
): AsyncGenerator<ChatStreamEvent> {
  for await (const event of events) {
    if (event.type === 'finished') request.log.info(measures(event), 'generated');
    yield event;
  }
}

function measures({ reason, promptTokens, cachedTokens, completionTokens, timing }: ChatFinished) {
  const { queueMilliseconds, promptMilliseconds, decodeMilliseconds } = timing;
  return {
    reason,
    promptTokens,
    cachedTokens,
    completionTokens,
    queueMilliseconds,
    promptMilliseconds,
    decodeMilliseconds,
  };
}

function newIdentity(model: ServedModel, { engine }: ServerOptions): CompletionIdentity {
  const { selection } = engine.status();
  const configuration = JSON.stringify([model.id, selection?.backend, selection?.isa]);
  return {
    id: `chatcmpl-${randomBytes(16).toString('hex')}`,
    created: Math.floor(Date.now() / 1000),
    model: model.id,
    // Changes when another model or backend answers.
    fingerprint: `fp_${createHash('sha256').update(configuration).digest('hex').slice(0, 10)}`,
  };
}
