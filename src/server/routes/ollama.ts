/** Ollama's API, as far as its clients talk to a model that is there: /api/chat, generate, tags, show, ps and version. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { type ChatStreamEvent, chat, chatPrompt, fittingLimit } from '../../api/complete.ts';
import { completeText, type TextEvent } from '../../api/complete-text.ts';
import { type Indexed, merge } from '../../api/merge.ts';
import { listed, running, shown } from '../../api/ollama/model-card.ts';
import { chatRequest, generateRequest, showRequest } from '../../api/ollama/schema.ts';
import { type Line, loadedLine, type Shape, toLines, toWhole } from '../../api/ollama/to-lines.ts';
import { type ParsedRequest, toChat, toGenerate, toShow, type Wanted } from '../../api/ollama/to-request.ts';
import type { InFlight } from '../in-flight.ts';
import { documented } from '../openapi.ts';
import type { ServerOptions } from '../options.ts';
import { checkModel } from './models.ts';
import { logged, sendStream } from './stream.ts';

/** The version of Ollama whose API this follows; clients compare it with what they need. */
const apiVersion = '0.12.6';

export function ollamaRoutes(app: FastifyInstance, options: ServerOptions, inFlight: InFlight): void {
  const { engine, tokenizer, model, sampling } = options;
  const context = { tokenizer, ...(sampling && { defaults: sampling }) };

  const answer = async (
    { model: name, stream, wanted }: ParsedRequest,
    shape: Shape,
    request: FastifyRequest,
    reply: FastifyReply,
  ): Promise<Line | FastifyReply> => {
    checkModel(name, model);
    const signal = inFlight.open(reply);
    const lines = linesFor(wanted, shape, signal, request);
    if (!stream) return toWhole(lines, shape);
    await sendStream(lines, request, reply);
    return reply;
  };

  async function* linesFor(
    wanted: Wanted,
    shape: Shape,
    signal: AbortSignal,
    request: FastifyRequest,
  ): AsyncGenerator<Line, void, void> {
    if (wanted.kind === 'load') return yield loadedLine(model.id, shape);
    const prompt = wanted.kind === 'chat' ? chatPrompt(wanted.request, tokenizer) : wanted.request.prompt;
    // num_predict is a bound, not a demand: an answer also ends where the context does.
    const maxTokens = fittingLimit(prompt.length, wanted.request.maxTokens, engine.contextTokens);
    const events: AsyncIterable<Indexed<ChatStreamEvent | TextEvent>> =
      wanted.kind === 'chat'
        ? merge([(ended) => chat(engine, tokenizer, { ...wanted.request, maxTokens }, ended, prompt)], 1, signal)
        : merge([(ended) => completeText(engine, tokenizer, { ...wanted.request, maxTokens }, ended)], 1, signal);
    yield* toLines(logged(events, request), model.id, shape);
  }

  app.post('/api/chat', documented("Answer a conversation, Ollama's way", chatRequest), (request, reply) =>
    answer(toChat(request.body, context), 'chat', request, reply),
  );

  app.post('/api/generate', documented("Answer a prompt, Ollama's way", generateRequest), (request, reply) =>
    answer(toGenerate(request.body, context), 'generate', request, reply),
  );

  const described = () => ({ ...model, contextTokens: engine.contextTokens });

  app.get('/api/tags', documented('The models of this server, for Ollama'), () => ({ models: [listed(described())] }));

  app.get('/api/ps', documented('The models that are loaded, for Ollama'), () => ({ models: [running(described())] }));

  app.post('/api/show', documented('One model, for Ollama', showRequest), (request) => {
    checkModel(toShow(request.body), model);
    return shown(described(), tokenizer.chatTemplate ?? '', tokenizer.specials.has('<think>'));
  });

  // The first thing Ollama's command line asks.
  app.get('/', documented('Whether the server runs'), () => 'Perigee is running');

  app.get('/api/version', documented("The version of Ollama's API"), () => ({ version: apiVersion }));
}
