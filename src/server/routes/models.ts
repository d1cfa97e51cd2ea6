/** GET /v1/models and /v1/models/{id}: the one model of this server. */
import type { FastifyInstance } from 'fastify';
import { perigeeError } from '../../errors.ts';
import { documented } from '../openapi.ts';
import type { ServedModel, ServerOptions } from '../options.ts';

/** Throws MODEL_UNKNOWN unless `name` means the served model. */
export function checkModel(name: string, model: ServedModel): void {
  if (name === model.id || model.aliases.includes(name)) return;
  throw perigeeError('MODEL_UNKNOWN', { model: name, served: model.id }, { param: 'model' });
}

export function modelRoutes(app: FastifyInstance, { engine, model }: ServerOptions): void {
  const description = () => ({
    id: model.id,
    object: 'model',
    created: model.created,
    owned_by: 'perigee',
    root: model.id,
    parent: null,
    max_model_len: engine.contextTokens,
  });

  app.get('/v1/models', documented('The models of this server'), () => ({ object: 'list', data: [description()] }));

  // A wildcard, since ids like moonshotai/Kimi-K2-Instruct have slashes.
  app.get<{ Params: { '*': string } }>('/v1/models/*', documented('One model'), (request) => {
    checkModel(request.params['*'], model);
    return description();
  });
}
