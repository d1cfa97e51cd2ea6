/**
 * The two Python examples of Kimi K2's model card, written with the official client, against `perigee serve` as people run
 * it: a front process, an engine process, and Nano.
 */
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startServe } from './serve-command.ts';

let server: ChildProcess;
let url: string;
let client: OpenAI;

beforeAll(async () => {
  ({ process: server, url } = await startServe());
  client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
});

afterAll(async () => {
  const ended = new Promise((resolve) => server.once('exit', resolve));
  server.kill('SIGTERM');
  expect(await ended).toBe(0);
});

/** Kills the engine process, the front's only child. */
function killEngine(): void {
  const children = readFileSync(`/proc/${server.pid}/task/${server.pid}/children`, 'utf8');
  process.kill(Number(children.trim().split(' ')[0]), 'SIGKILL');
}

const simpleChat = () =>
  client.chat.completions.create({
    model: 'nano',
    messages: [
      { role: 'system', content: 'You are Kimi, an AI assistant created by Moonshot AI.' },
      { role: 'user', content: [{ type: 'text', text: 'What is the capital of France?' }] },
    ],
    stream: false,
    temperature: 0,
    max_tokens: 256,
  });

const tools: OpenAI.ChatCompletionTool[] = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      description: 'Retrieve current weather information. Call this when the user asks about the weather.',
      parameters: {
        type: 'object',
        required: ['city'],
        properties: { city: { type: 'string', description: 'Name of the city' } },
      },
    },
  },
];

describe('the model card of Kimi K2', () => {
  it('has a chat whose content comes as a list of parts', async () => {
    const answer = await simpleChat();
    expect(answer.choices[0]?.message.content).toBe('The capital of France is Paris.');
    expect(answer.choices[0]?.finish_reason).toBe('stop');
    expect(answer.usage?.total_tokens).toBe(
      (answer.usage?.prompt_tokens ?? 0) + (answer.usage?.completion_tokens ?? 0),
    );
  });

  it.each([true, false])(
    'has a tool loop that goes on until finish_reason is not tool_calls (stream: %s)',
    async (stream) => {
      const messages: OpenAI.ChatCompletionMessageParam[] = [
        { role: 'system', content: 'You are Kimi, an AI assistant created by Moonshot AI.' },
        { role: 'user', content: "What's the weather like in Beijing today? Use the tool to check." },
      ];
      const cities: string[] = [];
      let choice: OpenAI.ChatCompletion.Choice | undefined;
      for (let turn = 0; turn < 4 && (!choice || choice.finish_reason === 'tool_calls'); turn++) {
        const request = {
          model: 'nano',
          messages,
          temperature: 0,
          max_tokens: 256,
          tools,
          tool_choice: 'auto',
        } as const;
        const answer = stream
          ? await client.chat.completions.stream(request).finalChatCompletion()
          : await client.chat.completions.create(request);
        choice = answer.choices[0];
        if (choice?.finish_reason !== 'tool_calls') break;
        messages.push(choice.message);
        for (const call of choice.message.tool_calls ?? []) {
          if (call.type !== 'function') throw new Error(`a call of type ${call.type}`);
          const { city } = JSON.parse(call.function.arguments) as { city: string };
          cities.push(city);
          messages.push({ role: 'tool', tool_call_id: call.id, content: JSON.stringify({ weather: 'Sunny' }) });
        }
      }
      expect(cities).toEqual(['Beijing']);
      expect(choice?.finish_reason).toBe('stop');
      expect(choice?.message.content).toMatch(/Beijing.*sunny/i);
    },
  );
});

describe('the server of the model card', () => {
  it('says what it runs on and why', async () => {
    const health = (await (await fetch(`${url}/health`)).json()) as Record<string, unknown>;
    expect(JSON.stringify(health)).toMatch(/(native|wasm): chosen/);
    expect(JSON.stringify(health)).toContain('rejected');
  });

  it('answers the same after its engine process was killed in mid-answer', async () => {
    const before = await simpleChat();
    const story = client.chat.completions.create({
      model: 'nano',
      messages: [{ role: 'user', content: 'Tell me a short story about an otter and a lantern.' }],
      max_tokens: 256,
      stream: true,
    });
    const listen = async () => {
      let pieces = 0;
      for await (const _ of await story) if (pieces++ === 3) killEngine();
    };
    await expect(listen()).rejects.toThrow(/engine failed/i);
    await expect.poll(async () => (await fetch(`${url}/readyz`)).status, { timeout: 30_000, interval: 100 }).toBe(200);
    const after = await simpleChat();
    expect(after.choices[0]?.message.content).toBe(before.choices[0]?.message.content);
  });
});
