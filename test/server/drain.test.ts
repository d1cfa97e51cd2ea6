/** A server that must go does so, whatever its clients leave undone: a drain that hangs fails by vitest's own time limit. */
import { afterEach, test } from 'vitest';
import { shutDown } from '../../src/server/lifecycle.ts';
import { openSocket } from './bare-socket.ts';
import { type Harness, silent, startLocal } from './harness.ts';

let server: Harness;
afterEach(() => server.close());

const path = '/v1/chat/completions';
const shutDownNow = () => shutDown(server.server, { engine: server.engine, logger: silent, drainMilliseconds: 0 });

test.each([
  ['headers', `POST ${path} HTTP/1.1\r\nhost: x\r\nx-slow: `],
  ['body', `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{`],
])('a request whose %s never come to an end does not keep it', async (_, begun) => {
  server = await startLocal();
  const { socket, closed } = openSocket(server.url, begun);
  await new Promise((resolve) => socket.once('connect', resolve));
  // The server has read what came before this answer.
  await fetch(`${server.url}/livez`);
  await shutDownNow();
  await closed;
});
