/** Who may talk to the server: a key on every route but health, and no open port on the network without one. */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { perigeeError } from '../errors.ts';

/** Probes carry no key and learn nothing but the state. */
const openRoutes: ReadonlySet<string> = new Set(['/health', '/livez', '/readyz']);

/** A hook that asks for `apiKey`, as a bearer token or in x-api-key. */
export function requireKey(apiKey: string): (request: FastifyRequest, reply: FastifyReply) => Promise<void> {
  const expected = digest(apiKey);
  return async (request, reply) => {
    if (openRoutes.has(request.routeOptions.url ?? '')) return;
    // Digests have equal length and reveal nothing, so the comparison takes the same time for every wrong key.
    if (timingSafeEqual(digest(presentedKey(request)), expected)) return;
    reply.header('www-authenticate', 'Bearer');
    throw perigeeError('API_KEY_WRONG', {});
  };
}

/** Throws HOST_NEEDS_KEY when the address would be reachable from elsewhere and nothing guards it. */
export function checkHost(host: string, apiKey: string | undefined, insecure: boolean): void {
  if (apiKey === undefined && !insecure && !isLoopback(host)) throw perigeeError('HOST_NEEDS_KEY', { host });
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\.\d+\.\d+\.\d+$/.test(host);
}

function presentedKey({ headers }: FastifyRequest): string {
  const bearer = /^Bearer (.+)$/i.exec(headers.authorization ?? '')?.[1];
  const plain = headers['x-api-key'];
  return bearer ?? (typeof plain === 'string' ? plain : '');
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
