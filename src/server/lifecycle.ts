/** From listening to a clean end: SIGTERM or SIGINT drains, a second one ends at once. */
import type { Logger } from 'pino';
import type { EngineClient } from '../scheduler/types.ts';
import { checkHost } from './auth.ts';
import type { Server } from './server.ts';

/** What supervisors commonly allow between SIGTERM and SIGKILL is 30 s. */
const defaultDrainMilliseconds = 25_000;
/** For last answers on their way. Node then waits without end for requests that never arrive in full, so they are cut. */
const closeMilliseconds = 1000;

export interface ListenOptions {
  /** 127.0.0.1 unless told otherwise. */
  readonly host?: string | undefined;
  /** 0: any free port. */
  readonly port: number;
  readonly apiKey?: string | undefined;
  /** Allows a host others can reach without a key. */
  readonly insecure?: boolean | undefined;
}

/** Opens the port and returns the address, "http://127.0.0.1:8000". */
export async function listen(server: Server, options: ListenOptions): Promise<string> {
  const host = options.host ?? '127.0.0.1';
  checkHost(host, options.apiKey, options.insecure ?? false);
  return server.app.listen({ host, port: options.port });
}

export interface EndOptions {
  readonly engine: EngineClient;
  readonly logger: Logger;
  /** How long generations under way may take to finish. */
  readonly drainMilliseconds?: number | undefined;
}

/** Finishes what is under way, then closes the port and the engine. While it drains, /readyz says 503. */
export async function shutDown(server: Server, options: EndOptions): Promise<void> {
  const { engine, logger } = options;
  logger.info({ generations: server.inFlight.size }, 'draining');
  await server.inFlight.drain(options.drainMilliseconds ?? defaultDrainMilliseconds);
  const cut = setTimeout(() => server.app.server.closeAllConnections(), closeMilliseconds);
  await server.app.close();
  clearTimeout(cut);
  await engine.close();
  logger.info('closed');
}

/** Resolves when the process has been told to end and has drained; a second signal ends it on the spot. */
export function untilSignalled(server: Server, options: EndOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    let draining = false;
    const hear = (signal: NodeJS.Signals) => {
      // The engine process is killed by the 'exit' handler of its RemoteEngine.
      if (draining) process.exit(1);
      draining = true;
      options.logger.info({ signal }, 'told to end');
      shutDown(server, options).then(resolve, reject);
    };
    process.on('SIGTERM', hear);
    process.on('SIGINT', hear);
  });
}
