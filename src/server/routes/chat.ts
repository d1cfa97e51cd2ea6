/** POST /v1/chat/completions: reads the request, runs the chat once per choice, sends the answers whole or in pieces. */
import type { FastifyInstance, FastifyReply } from 'fastify';
import { type ChatRequest, chat, chatPrompt } from '../../api/complete.ts';
import { merge } from '../../api/merge.ts';
import { samplingOfChoice } from '../../api/openai/generation-options.ts';
import { chatCompletionRequest } from '../../api/openai/schema.ts';
import { toChunks } from '../../api/openai/to-chunks.ts';
import { type ChatCompletion, toCompletion } from '../../api/openai/to-completion.ts';
import { toChatRequest } from '../../api/openai/to-request.ts';
import type { InFlight } from '../in-flight.ts';
import { documented } from '../openapi.ts';
import type { ServerOptions } from '../options.ts';
import { checkModel } from './models.ts';
import { logged, newIdentity, sendStream } from './stream.ts';

export function chatRoutes(app: FastifyInstance, options: ServerOptions, inFlight: InFlight): void {
  const { engine, tokenizer, model, sampling } = options;
  app.post(
    '/v1/chat/completions',
    documented('Answer a conversation', chatCompletionRequest),
    async (request, reply): Promise<ChatCompletion | FastifyReply> => {
      const wanted = toChatRequest(request.body, { tokenizer, ...(sampling && { defaults: sampling }) });
      if (wanted.model !== undefined) checkModel(wanted.model, model);
      const signal = inFlight.open(reply);
      const prompt = chatPrompt(wanted.request, tokenizer);
      const answers = Array.from({ length: wanted.choices }, (_, index) => {
        const ofChoice: ChatRequest = {
          ...wanted.request,
          sampling: samplingOfChoice(wanted.request.sampling, index),
        };
        return (ended: AbortSignal) => chat(engine, tokenizer, ofChoice, ended, prompt);
      });
      const events = logged(merge(answers, answers.length, signal), request);
      const identity = newIdentity('chatcmpl', options);
      const names = { tokenizer, asIds: wanted.tokensAsIds };
      if (!wanted.stream) return toCompletion(events, identity, names);
      await sendStream(toChunks(events, identity, { includeUsage: wanted.includeUsage, names }), request, reply);
      return reply;
    },
  );
}
