/** The HTTP server: one Fastify instance with its hooks, error shapes and routes. Listening and ending: lifecycle.ts. */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import Fastify, { type FastifyBaseLogger, type FastifyInstance, LogController } from 'fastify';
import { perigeeError } from '../errors.ts';
import { requireKey } from './auth.ts';
import { bodyLimit, readJsonBodies } from './body.ts';
import { answerBrokenRequest } from './broken-request.ts';
import { handleError } from './errors.ts';
import { InFlight } from './in-flight.ts';
import { Metrics } from './metrics.ts';
import { describeRoutes, openApiRoutes } from './openapi.ts';
import type { ServerOptions } from './options.ts';
import { chatRoutes } from './routes/chat.ts';
import { completionRoutes } from './routes/completions.ts';
import { healthRoutes } from './routes/health.ts';
import { messagesRoutes } from './routes/messages.ts';
import { metricsRoutes } from './routes/metrics.ts';
import { modelRoutes } from './routes/models.ts';
import { ollamaRoutes } from './routes/ollama.ts';
import { tokenizeRoutes } from './routes/tokenize.ts';

/** Time to send a whole request (32 MB at 2 Mbit/s), and its headers alone; a slower sender gets 408. */
const requestMilliseconds = 120_000;
const headersMilliseconds = 20_000;
/** How often Node looks for slow senders. */
const slowCheckMilliseconds = 1000;

export interface Server {
  readonly app: FastifyInstance;
  readonly inFlight: InFlight;
}

export function createServer(options: ServerOptions): Server {
  const app = Fastify({
    loggerInstance: options.logger as FastifyBaseLogger,
    logController: new LogController({ disableRequestLogging: true }),
    genReqId,
    bodyLimit,
    requestTimeout: requestMilliseconds,
    http: { headersTimeout: headersMilliseconds, connectionsCheckingInterval: slowCheckMilliseconds },
    routerOptions: { maxParamLength: 1000 },
    clientErrorHandler: answerBrokenRequest,
    frameworkErrors: handleError,
    // What comes on an open connection while the port closes is answered by us, in the words of its API.
    return503OnClosing: false,
    // A number where a text belongs is a mistake to point out.
    ajv: { customOptions: { coerceTypes: false } },
  });
  const inFlight = new InFlight();
  readJsonBodies(app);
  app.addHook('onRequest', async (request, reply) => {
    // OpenAI's clients read the first, Anthropic's the second.
    reply.header('x-request-id', request.id).header('request-id', request.id);
  });
  if (options.apiKey !== undefined) app.addHook('onRequest', requireKey(options.apiKey));
  app.addHook('onResponse', async (request, reply) => {
    // The path only: never bodies, nor queries, which may hold keys.
    const { method, routeOptions } = request;
    const milliseconds = Math.round(reply.elapsedTime);
    request.log.info({ method, route: routeOptions.url, status: reply.statusCode, milliseconds }, 'answered');
  });
  app.setErrorHandler(handleError);
  answerUnknownRoutes(app);

  describeRoutes(app);
  const metrics = new Metrics(options.engine, options.model.id);
  const measured = { ...options, engine: metrics.measured(options.engine) };
  // In a plugin, so that they come after the one that describes them.
  app.register(async (routes) => {
    healthRoutes(routes, options, inFlight);
    metricsRoutes(routes, metrics);
    openApiRoutes(routes);
    modelRoutes(routes, options);
    tokenizeRoutes(routes, options);
    chatRoutes(routes, measured, inFlight);
    completionRoutes(routes, measured, inFlight);
    messagesRoutes(routes, measured, inFlight);
    ollamaRoutes(routes, measured, inFlight);
  });
  return { app, inFlight };
}

/** The client's own id when it is fit for logs, else a new one. */
function genReqId(request: IncomingMessage): string {
  const given = request.headers['x-request-id'];
  return typeof given === 'string' && /^[\w.:-]{1,128}$/.test(given) ? given : `req-${randomUUID()}`;
}

/** 404 for paths nobody has, 405 with `allow` for those that exist with another method. */
function answerUnknownRoutes(app: FastifyInstance): void {
  const methods = new Map<string, string[]>();
  app.addHook('onRoute', ({ url, method }) => {
    methods.set(url, [...(methods.get(url) ?? []), ...[method].flat()]);
  });
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split('?', 1)[0] as string;
    const pattern = path.startsWith('/v1/models/') ? '/v1/models/*' : path;
    const allowed = methods.get(pattern)?.join(', ');
    const { method } = request;
    if (allowed === undefined) throw perigeeError('ROUTE_UNKNOWN', { method, path: path.slice(0, 200) });
    reply.header('allow', allowed);
    throw perigeeError('METHOD_NOT_ALLOWED', { method, path, allowed });
  });
}
