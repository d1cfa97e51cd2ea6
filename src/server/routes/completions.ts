/** POST /v1/completions: goes on with texts or token ids, several at a time, and scores them for those who ask. */
import type { FastifyInstance, FastifyReply } from 'fastify';
import { completeText } from '../../api/complete-text.ts';
import { merge } from '../../api/merge.ts';
import { toCompletionRequest } from '../../api/openai/completion-request.ts';
import { completionRequest } from '../../api/openai/completion-schema.ts';
import { type TextCompletion, toTextChunks, toTextCompletion } from '../../api/openai/text-completion.ts';
import type { InFlight } from '../in-flight.ts';
import { documented } from '../openapi.ts';
import type { ServerOptions } from '../options.ts';
import { checkModel } from './models.ts';
import { logged, newIdentity, sendStream } from './stream.ts';

/** Generations of one request that are with the engine at a time, so that a batch leaves places in the queue to others. */
const mostAtOnce = 16;

export function completionRoutes(app: FastifyInstance, options: ServerOptions, inFlight: InFlight): void {
  const { engine, tokenizer, model, sampling } = options;
  app.post(
    '/v1/completions',
    documented('Continue texts', completionRequest),
    async (request, reply): Promise<TextCompletion | FastifyReply> => {
      const wanted = toCompletionRequest(request.body, { tokenizer, ...(sampling && { defaults: sampling }) });
      if (wanted.model !== undefined) checkModel(wanted.model, model);
      const signal = inFlight.open(reply);
      const texts = wanted.requests.map((each) => (ended: AbortSignal) => completeText(engine, tokenizer, each, ended));
      const events = logged(merge(texts, mostAtOnce, signal), request);
      const identity = newIdentity('cmpl', options);
      const names = { tokenizer, asIds: wanted.tokensAsIds };
      if (!wanted.stream) return toTextCompletion(events, wanted, names, identity);
      await sendStream(toTextChunks(events, wanted, names, identity), request, reply);
      return reply;
    },
  );
}
