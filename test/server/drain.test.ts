/** A server that must go does so, whatever its clients leave undone: a drain that hangs fails by vitest's own time limit. */
import { afterEach, expect, test } from 'vitest';
import { shutDown } from '../../src/server/lifecycle.ts';
import { eventually } from '../scheduler/eventually.ts';
import { openSocket, postText } from './bare-socket.ts';
import { type Harness, modelId, silent, startLocal } from './harness.ts';

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

test('a request that arrives in full when the port is closed already is refused in the words of its API', async () => {
  server = await startLocal();
  const request = postText(path, JSON.stringify({ model: modelId, messages: [{ role: 'user', content: 'Hello' }] }));
  const { socket, closed } = openSocket(server.url, request.slice(0, 40));
  await new Promise((resolve) => socket.once('connect', resolve));
  await fetch(`${server.url}/livez`);
  const gone = shutDownNow();
  await eventually(() => expect(fetch(`${server.url}/livez`)).rejects.toThrow());
  socket.write(request.slice(40));
  const answer = await closed;
  expect(answer).toMatch(/^HTTP\/1\.1 503 /);
  expect(answer).toContain('"code":"engine_closed"');
  await gone;
});
