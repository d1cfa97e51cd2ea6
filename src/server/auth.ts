/** Who may talk to the server: a key on every route but health, and no open port on the network without one. */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { perigeeError } from '../errors.ts';

/** Probes carry no key and learn nothing but the state. */
const openRoutes: ReadonlySet<string> = new Set(['/health', '/livez', '/readyz']);

/** Wrong keys that one address may send in a minute: more than a misconfigured client does, fewer than guessing needs. */
const wrongKeysAllowed = 100;
const windowMilliseconds = 60_000;
/** Addresses remembered, 1 MB at most. Beyond that the one that was wrong first is forgotten. */
const mostAddresses = 10_000;

/** A hook that asks for `apiKey`, as a bearer token or in x-api-key. */
export function requireKey(apiKey: string): (request: FastifyRequest, reply: FastifyReply) => Promise<void> {
  const expected = digest(apiKey);
  const wrong = new WrongKeys();
  return async (request, reply) => {
    if (openRoutes.has(request.routeOptions.url ?? '')) return;
    // Digests have equal length and reveal nothing, so the comparison takes the same time for every wrong key.
    // The right key is taken whoever else was wrong: behind a proxy all clients have one address.
    const presented = presentedKey(request);
    if (timingSafeEqual(digest(presented), expected)) return;
    // Who sends none does not guess.
    const seconds = presented === '' ? 0 : wrong.count(request.ip, performance.now());
    if (seconds === 0) {
      reply.header('www-authenticate', 'Bearer');
      throw perigeeError('API_KEY_WRONG', {});
    }
    // A new connection for every further guess.
    reply.header('retry-after', seconds).header('connection', 'close');
    throw perigeeError('API_KEY_WRONG_OFTEN', { seconds });
  };
}

/** How often each address was wrong in its minute, which begins with the first time. */
export class WrongKeys {
  readonly #addresses = new Map<string, { count: number; readonly until: number }>();

  /** Counts one wrong key at time `now`; returns 0, or the seconds for which the address has been wrong too often. */
  count(address: string, now: number): number {
    let entry = this.#addresses.get(address);
    if (entry === undefined || entry.until <= now) {
      this.#addresses.delete(address);
      entry = { count: 0, until: now + windowMilliseconds };
      this.#addresses.set(address, entry);
      const [first] = this.#addresses.keys();
      if (this.#addresses.size > mostAddresses) this.#addresses.delete(first as string);
    }
    return ++entry.count <= wrongKeysAllowed ? 0 : Math.ceil((entry.until - now) / 1000);
  }
}

/** Throws HOST_NEEDS_KEY when the address would be reachable from elsewhere and nothing guards it. */
export function checkHost(host: string, apiKey: string | undefined, insecure: boolean): void {
  // An empty key is one that everybody has.
  if (!apiKey && !insecure && !isLoopback(host)) throw perigeeError('HOST_NEEDS_KEY', { host });
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
