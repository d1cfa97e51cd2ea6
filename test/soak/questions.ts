/** Requests whose answers do not depend on what else the server does, through the official clients. */
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';

export interface Question {
  readonly name: string;
  /** All that must be equal each time: texts, calls, reasons and counts. */
  readonly ask: () => Promise<string>;
}

const topics = ['an otter', 'a lantern', 'the sea', 'a clock', 'snow', 'bread', 'a train', 'the moon'];
const schema = {
  type: 'object',
  properties: { name: { type: 'string', maxLength: 12 }, legs: { type: 'integer', minimum: 0, maximum: 9 } },
  required: ['name', 'legs'],
  additionalProperties: false,
};
const tool = { type: 'function' as const, function: { name: 'note_animal', parameters: schema } };

export function clients(url: string): { readonly openai: OpenAI; readonly anthropic: Anthropic } {
  return {
    openai: new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 300_000 }),
    anthropic: new Anthropic({ baseURL: url, apiKey: 'none', maxRetries: 0, timeout: 300_000 }),
  };
}

/** Greedy and drawn by seed, whole and in streams, free and held to a schema: a few of each for every topic. */
export function questions(url: string): readonly Question[] {
  const { openai, anthropic } = clients(url);
  return topics.flatMap((topic, seed) => {
    const messages = [{ role: 'user' as const, content: `Tell me about ${topic}.` }];
    const base = { model: 'nano', messages, max_tokens: 40, seed };
    return [
      {
        name: `chat, greedy, ${topic}`,
        ask: async () => toText((await openai.chat.completions.create({ ...base, temperature: 0 })).choices),
      },
      {
        name: `chat, drawn, in a stream, ${topic}`,
        ask: async () => {
          const stream = await openai.chat.completions.create({ ...base, temperature: 1, stream: true });
          let text = '';
          for await (const chunk of stream) {
            const [choice] = chunk.choices;
            text += (choice?.delta.content ?? '') + (choice?.finish_reason ?? '');
          }
          return text;
        },
      },
      {
        name: `text with log-probabilities, ${topic}`,
        ask: async () => {
          const prompt = `Once there was ${topic}`;
          const wanted = { model: 'nano', prompt, max_tokens: 24, temperature: 0.8, seed, logprobs: 3, n: 2 };
          return toText((await openai.completions.create(wanted)).choices);
        },
      },
      {
        name: `call by a schema, ${topic}`,
        ask: async () => {
          const wanted = { ...base, max_tokens: 120, tools: [tool], tool_choice: 'required' as const };
          return toText((await openai.chat.completions.create({ ...wanted, parallel_tool_calls: false })).choices);
        },
      },
      {
        name: `Anthropic message, ${topic}`,
        ask: async () => {
          const stream = anthropic.messages.stream({ model: 'nano', max_tokens: 32, messages, temperature: 0 });
          const { content, stop_reason, usage } = await stream.finalMessage();
          return toText([content, stop_reason, usage.output_tokens]);
        },
      },
    ];
  });
}

function toText(value: unknown): string {
  return JSON.stringify(value);
}
