/** GET /openapi.json: the routes as OpenAPI describes them, from the schemas that requests are checked by. */
import swagger from '@fastify/swagger';
import type { TSchema } from '@sinclair/typebox';
import type { FastifyInstance, FastifySchema, RouteShorthandOptions } from 'fastify';

/** Routes registered after this are in the document. */
export function describeRoutes(app: FastifyInstance): void {
  app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Perigee', description: 'Kimi K2 and its relatives over HTTP.', version: '1' },
      components: { securitySchemes: { key: { type: 'http', scheme: 'bearer' } } },
    },
  });
}

export function openApiRoutes(app: FastifyInstance): void {
  app.get('/openapi.json', documented('This document'), () => app.swagger());
}

/** Route options that describe a route. Its body is checked by src/api, which can say more of a fault than a schema can. */
export function documented(summary: string, body?: TSchema): RouteShorthandOptions {
  const schema: FastifySchema & { summary: string } = { summary, ...(body && { body }) };
  return { schema, validatorCompiler: () => () => true };
}
