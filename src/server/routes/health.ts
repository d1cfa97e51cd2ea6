/** How the server is: for people and dashboards (/health), for supervisors (/livez) and load balancers (/readyz). */
import type { FastifyInstance } from 'fastify';
import type { InFlight } from '../in-flight.ts';
import { documented } from '../openapi.ts';
import type { ServerOptions } from '../options.ts';

export function healthRoutes(app: FastifyInstance, { engine, model }: ServerOptions, inFlight: InFlight): void {
  const condition = () => (inFlight.draining ? 'draining' : engine.status().state);

  app.get('/health', documented('State, for people and dashboards'), (_request, reply) => {
    const { selection, running, waiting, restarts, failures, restartsIn, lastFailure, state, statistics } =
      engine.status();
    const status = condition();
    return reply.code(status === 'ready' ? 200 : 503).send({
      status,
      model: model.id,
      backend: selection,
      engine: {
        state,
        restarts,
        failures_in_a_row: failures,
        restarts_in_milliseconds: restartsIn,
        last_failure: lastFailure,
      },
      queue: { running, waiting },
      cache: statistics && {
        pages: statistics.pages,
        prompt_tokens: statistics.prefixes.promptTokens,
        cached_tokens: statistics.prefixes.cachedTokens,
        preemptions: statistics.preemptions,
      },
      uptime_seconds: Math.floor(process.uptime()),
    });
  });

  app.get('/livez', documented('Whether the process lives'), () => ({ status: 'alive' }));

  app.get('/readyz', documented('Whether requests are taken'), (_request, reply) => {
    const status = condition();
    return reply.code(status === 'ready' ? 200 : 503).send({ status });
  });
}
