/** What the others do meanwhile: leave, read slowly, send nonsense, come in crowds. Each returns how many it made. */
import { setTimeout as sleep } from 'node:timers/promises';
import autocannon from 'autocannon';
import { openSocket, postText } from '../server/bare-socket.ts';
import { drawBrokenHttp, drawMalformed } from '../server/malformed.ts';
import { type Random, seeded } from '../server/random.ts';
import { clients } from './questions.ts';

const long = {
  model: 'nano',
  messages: [{ role: 'user' as const, content: 'Tell me a long story.' }],
  temperature: 1.5,
  max_tokens: 1000,
};

/** Streams whose clients leave: in the queue, in the prompt, or after some tokens. */
export async function disconnects(url: string, count: number, seed: number): Promise<number> {
  const random = seeded(seed);
  const { openai } = clients(url);
  const leave = async () => {
    const abort = new AbortController();
    const soon = random(2) === 0 ? setTimeout(() => abort.abort(), random(50)) : undefined;
    const most = 1 + random(10);
    let chunks = 0;
    try {
      const stream = await openai.chat.completions.create({ ...long, stream: true }, { signal: abort.signal });
      for await (const _ of stream) if (++chunks >= most) break;
    } catch (error) {
      if (!abort.signal.aborted) throw error;
    }
    clearTimeout(soon);
  };
  await inTurns(count, 8, leave);
  return count;
}

/** Streams of which little is read, until `signal`. */
export async function slowReaders(url: string, count: number, signal: AbortSignal): Promise<number> {
  const body = JSON.stringify({ ...long, stream: true, logprobs: true, top_logprobs: 20 });
  const sockets = Array.from({ length: count }, () => openSocket(url, postText('/v1/chat/completions', body)).socket);
  while (!signal.aborted) {
    for (const socket of sockets) socket.pause();
    await sleep(900);
    for (const socket of sockets) socket.resume();
    await sleep(5);
  }
  for (const socket of sockets) socket.destroy();
  return count;
}

/** Broken bodies and broken HTTP, in equal parts; throws when one is answered as the server's fault. */
export async function malformed(url: string, count: number, seed: number): Promise<number> {
  const random = seeded(seed);
  await inTurns(count, 4, () => (random(2) === 0 ? brokenBody(url, random) : brokenHttp(url, random)));
  return count;
}

async function brokenBody(url: string, random: Random): Promise<void> {
  const { path, body } = drawMalformed(random);
  const response = await fetch(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body,
  });
  const text = await response.text();
  if (response.status >= 500) throw new Error(`${response.status} for ${path} ${body.slice(0, 300)}: ${text}`);
}

async function brokenHttp(url: string, random: Random): Promise<void> {
  const { socket, closed } = openSocket(url, drawBrokenHttp(random));
  socket.end();
  const [, status] = /^HTTP\/1\.1 (5\d\d)/m.exec(await closed) ?? [];
  if (status !== undefined) throw new Error(`${status} for bytes that are no request`);
}

/** As many short requests as 32 connections can make; throws when one is not answered with 200. */
export async function crowd(url: string, seconds: number): Promise<number> {
  const result = await autocannon({
    url: `${url}/v1/chat/completions`,
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...long, max_tokens: 8 }),
    connections: 32,
    duration: seconds,
    timeout: 120,
  });
  const { errors, timeouts, non2xx } = result;
  if (errors + timeouts + non2xx > 0) throw new Error(`autocannon: ${JSON.stringify({ errors, timeouts, non2xx })}`);
  return result['2xx'];
}

/** Runs `each` `count` times, `width` at once. */
export async function inTurns(count: number, width: number, each: (index: number) => Promise<unknown>): Promise<void> {
  let next = 0;
  const worker = async () => {
    while (next < count) await each(next++);
  };
  await Promise.all(Array.from({ length: width }, worker));
}
