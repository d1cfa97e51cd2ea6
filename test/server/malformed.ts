/** Seeded draws of broken requests: sound bodies with hostile values in some places, then maybe broken as text. */
import { pick, type Random } from './random.ts';

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface Drawn {
  readonly path: string;
  readonly body: string;
}

const messages = [
  { role: 'user', content: 'Hello' },
  { role: 'assistant', content: 'Hi', tool_calls: [] },
  { role: 'user', content: [{ type: 'text', text: 'Again' }] },
];
const tool = { type: 'function', function: { name: 'f', parameters: { type: 'object', properties: {} } } };

/** Short answers, so that a mutant which is still sound costs little. */
const sound: Readonly<Record<string, Json>> = {
  '/v1/chat/completions': { messages, max_tokens: 4, temperature: 1, stop: ['x'], tools: [tool], stream: false },
  '/v1/completions': { prompt: 'Hello', max_tokens: 4, logprobs: 2, echo: true, seed: 1 },
  '/tokenize': { prompt: 'Hello', add_special_tokens: true },
  '/detokenize': { tokens: [1, 2, 3] },
};

const hostile: readonly Json[] = [
  ...[null, true, false, 0, -1, 1.5, 1e308, 2 ** 53, -(2 ** 31), '', 'x', '0.5', '\ud800', '\u0000', '<|im_end|>'],
  ...[[], {}, [null], [[[]]], [''], { a: {} }, [1e9], ['x'.repeat(5000)], 'word '.repeat(3000), { '-1': 1 }],
  ...[{ type: 'json_schema' }, { type: 'hiccup' }, { type: 'function', function: { name: 'absent' } }],
];

const fields = [
  ...['messages', 'prompt', 'tokens', 'n', 'seed', 'stop', 'stream', 'stream_options', 'temperature', 'top_p', 'top_k'],
  ...['min_p', 'max_tokens', 'max_completion_tokens', 'logprobs', 'top_logprobs', 'echo', 'logit_bias', 'tools'],
  ...[
    'tool_choice',
    'parallel_tool_calls',
    'response_format',
    'presence_penalty',
    'frequency_penalty',
    'model',
    'user',
  ],
  ...['suffix', 'best_of', 'min_tokens', 'constructor', 'add_generation_prompt', 'chat_template_kwargs'],
];

/** Draws one request; a few of them are sound after all. */
export function drawMalformed(random: Random): Drawn {
  const path = pick(random, Object.keys(sound));
  const body = structuredClone(sound[path]) as { [key: string]: Json };
  for (let changes = 1 + random(3); changes > 0; changes--) {
    if (random(2) === 0) body[pick(random, fields)] = structuredClone(pick(random, hostile));
    else spoilSomewhere(body, random);
  }
  const text = JSON.stringify(body);
  return { path, body: random(4) === 0 ? breakText(text, random) : text };
}

/** Walks down at random and replaces or removes what it ends at. */
function spoilSomewhere(value: Json, random: Random): void {
  if (typeof value !== 'object' || value === null) return;
  const node = value as { [key: string]: Json };
  const keys = Object.keys(node);
  if (keys.length === 0) return;
  const key = pick(random, keys);
  const child = node[key] as Json;
  if (typeof child === 'object' && child !== null && random(3) > 0) spoilSomewhere(child, random);
  else if (random(4) === 0 && !Array.isArray(value)) delete node[key];
  else node[key] = structuredClone(pick(random, hostile));
}

/** Cut, doubled, or with a wrong character. */
function breakText(text: string, random: Random): string {
  const at = random(text.length);
  switch (random(3)) {
    case 0:
      return text.slice(0, at);
    case 1:
      return text.slice(0, at) + text.slice(random(text.length));
    default:
      return `${text.slice(0, at)}${pick(random, ['"', '{', ']', '\\', ',', '\u0000', 'é', '1e999'])}${text.slice(at + 1)}`;
  }
}

/** The bytes of a request with some of them changed: mostly no HTTP any more. */
export function drawBrokenHttp(random: Random): Buffer {
  const { path, body } = drawMalformed(random);
  const length = random(4) === 0 ? pick(random, ['-1', '1e9', '9'.repeat(30), 'x']) : String(Buffer.byteLength(body));
  const head = `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${length}\r\n\r\n`;
  const bytes = Buffer.from(head + body);
  for (let changes = 1 + random(4); changes > 0; changes--) bytes[random(head.length)] = random(256);
  return bytes.subarray(0, random(8) === 0 ? random(bytes.length) : bytes.length);
}
