/** GET /metrics: for Prometheus. */
import type { FastifyInstance } from 'fastify';
import type { Metrics } from '../metrics.ts';
import { documented } from '../openapi.ts';

export function metricsRoutes(app: FastifyInstance, metrics: Metrics): void {
  app.get('/metrics', documented("Measures in Prometheus' format"), async (_request, reply) => {
    reply.type(metrics.contentType);
    return metrics.text();
  });
}
