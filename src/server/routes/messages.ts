/** Anthropic's API: POST /v1/messages and its token count, also under /anthropic as Moonshot has it. */
import { randomBytes } from 'node:crypto';
import type { FastifyInstance, FastifyReply } from 'fastify';
import { countTokensRequest, messagesRequest } from '../../api/anthropic/schema.ts';
import { type AnswerMessage, toEvents } from '../../api/anthropic/to-events.ts';
import { toMessage } from '../../api/anthropic/to-message.ts';
import { toCountedPrompt, toMessagesRequest } from '../../api/anthropic/to-request.ts';
import { chat, fittingLimit } from '../../api/complete.ts';
import { merge } from '../../api/merge.ts';
import { perigeeError } from '../../errors.ts';
import type { InFlight } from '../in-flight.ts';
import { documented } from '../openapi.ts';
import type { ServerOptions } from '../options.ts';
import { checkModel } from './models.ts';
import { logged, sendStream } from './stream.ts';

export function messagesRoutes(app: FastifyInstance, options: ServerOptions, inFlight: InFlight): void {
  for (const base of ['/v1/messages', '/anthropic/v1/messages']) routesAt(base, app, options, inFlight);
}

function routesAt(base: string, app: FastifyInstance, options: ServerOptions, inFlight: InFlight): void {
  const { engine, tokenizer, model, sampling } = options;
  const kimi = [model.id, ...model.aliases].some((name) => /kimi/i.test(name));
  const context = { tokenizer, kimi, ...(sampling && { defaults: sampling }) };

  app.post(
    base,
    documented("Answer a conversation, Anthropic's way", messagesRequest),
    async (request, reply): Promise<AnswerMessage | FastifyReply> => {
      const wanted = toMessagesRequest(request.body, context);
      checkModel(wanted.model, model);
      const signal = inFlight.open(reply);
      const { prompt } = wanted;
      // Clients of this API ask for the most any model gives and expect an answer that ends where the context does.
      const maxTokens = fittingLimit(prompt.length, wanted.maxTokens, engine.contextTokens);
      const answer = (ended: AbortSignal) => chat(engine, tokenizer, { ...wanted.request, maxTokens }, ended, prompt);
      const identity = { id: `msg_${randomBytes(12).toString('hex')}`, model: model.id };
      const events = toEvents(logged(merge([answer], 1, signal), request), identity, wanted.maxTokens);
      if (!wanted.stream) return toMessage(events);
      await sendStream(events, request, reply);
      return reply;
    },
  );

  app.post(`${base}/count_tokens`, documented('Tokens of a prompt', countTokensRequest), (request) => {
    const { model: name, prompt } = toCountedPrompt(request.body, tokenizer);
    checkModel(name, model);
    return { input_tokens: prompt.length };
  });

  const refuse = () => {
    const details = { field: 'batches', value: 'asked for', advice: 'Send the requests one by one, or all at once.' };
    throw perigeeError('FIELD_UNSUPPORTED', details);
  };
  app.get(`${base}/batches`, documented('Refused: batches of messages'), refuse);
  app.post(`${base}/batches`, documented('Refused: batches of messages'), refuse);
}
