/** POST /tokenize and /detokenize and GET /tokenizer_info, as vLLM has them: text to ids and back. */
import type { FastifyInstance } from 'fastify';
import {
  detokenizeRequest,
  toDetokenizeRequest,
  tokenizeRequest,
  tokenizerInfo,
  toTokenizeRequest,
} from '../../api/openai/tokenize.ts';
import { documented } from '../openapi.ts';
import type { ServerOptions } from '../options.ts';
import { checkModel } from './models.ts';

export function tokenizeRoutes(app: FastifyInstance, { engine, tokenizer, model: served }: ServerOptions): void {
  app.post('/tokenize', documented('Token ids of a text or a chat', tokenizeRequest), (request) => {
    const { tokens, model, withTexts } = toTokenizeRequest(request.body, tokenizer);
    if (model !== undefined) checkModel(model, served);
    return {
      count: tokens.length,
      max_model_len: engine.contextTokens,
      tokens,
      token_strs: withTexts ? tokens.map((token) => tokenizer.decode([token])) : null,
    };
  });

  app.post('/detokenize', documented('The text of token ids', detokenizeRequest), (request) => {
    const { tokens, model } = toDetokenizeRequest(request.body, tokenizer);
    if (model !== undefined) checkModel(model, served);
    return { prompt: tokenizer.decode(tokens) };
  });

  app.get('/tokenizer_info', documented('Special tokens and chat template'), () =>
    tokenizerInfo(tokenizer, engine.contextTokens),
  );
}
