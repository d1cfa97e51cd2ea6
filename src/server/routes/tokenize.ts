/** POST /tokenize and /detokenize, as vLLM has them: text to ids and back. */
import { type Static, Type } from '@sinclair/typebox';
import type { FastifyInstance } from 'fastify';
import { perigeeError } from '../../errors.ts';
import type { ServerOptions } from '../options.ts';

const TokenizeBody = Type.Object({ prompt: Type.String(), return_token_strs: Type.Optional(Type.Boolean()) });
const DetokenizeBody = Type.Object({ tokens: Type.Array(Type.Integer({ minimum: 0 })) });

export function tokenizeRoutes(app: FastifyInstance, { engine, tokenizer }: ServerOptions): void {
  app.post<{ Body: Static<typeof TokenizeBody> }>('/tokenize', { schema: { body: TokenizeBody } }, (request) => {
    const tokens = tokenizer.encode(request.body.prompt);
    return {
      count: tokens.length,
      max_model_len: engine.contextTokens,
      tokens,
      ...(request.body.return_token_strs === true && { token_strs: tokens.map((token) => tokenizer.decode([token])) }),
    };
  });

  app.post<{ Body: Static<typeof DetokenizeBody> }>('/detokenize', { schema: { body: DetokenizeBody } }, (request) => {
    const { tokens } = request.body;
    const vocabulary = tokenizer.vocabularySize;
    const stray = tokens.find((token) => token >= vocabulary);
    if (stray !== undefined)
      throw perigeeError('TOKEN_OUT_OF_RANGE', { token: stray, vocabulary }, { param: 'tokens' });
    return { prompt: tokenizer.decode(tokens) };
  });
}
