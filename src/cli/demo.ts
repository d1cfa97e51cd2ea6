/** `make demo`: Nano loads, tells a story, and calls a tool, as the model card of Kimi K2 shows it. */
import type { Message, Tool } from '../chat/types.ts';
import { PerigeeError } from '../errors.ts';
import { nanoFile } from '../runtime/assets.ts';
import { answer, noteRates, type Partner, samplingFrom, showEvent, startPartner } from './converse.ts';
import { note, print } from './output.ts';

/** Greedy, so that everyone hears the same. */
const greedy = { temperature: 0, seed: 0 };
const maxTokens = 256;
/** The weather is asked once; a model that keeps asking must not keep us here. */
const mostTurns = 4;

const weatherTool: Tool = {
  name: 'get_weather',
  declaration: {
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
};

/** The tool itself: it is always sunny in a demonstration. */
function getWeather(): string {
  return JSON.stringify({ weather: 'Sunny' });
}

async function ask(partner: Partner, messages: Message[], tools: readonly Tool[] = []): Promise<Message> {
  const sampling = samplingFrom(partner.sampling, greedy);
  const { message, finished } = await answer(partner, { messages, tools, sampling, maxTokens }, showEvent);
  print();
  noteRates(finished);
  return message;
}

async function tellStory(partner: Partner): Promise<void> {
  const content = 'Tell me a short story about an otter and a lantern.';
  print(`\n> ${content}`);
  await ask(partner, [{ role: 'user', content }]);
}

async function askWeather(partner: Partner): Promise<void> {
  const content = "What's the weather like in Beijing today? Use the tool to check.";
  print(`\n> ${content}`);
  const messages: Message[] = [
    { role: 'system', content: 'You are Kimi, an AI assistant created by Moonshot AI.' },
    { role: 'user', content },
  ];
  for (let turn = 0; turn < mostTurns; turn++) {
    const message = await ask(partner, messages, [weatherTool]);
    messages.push(message);
    if (message.toolCalls === undefined) return;
    for (const call of message.toolCalls) {
      const result = getWeather();
      print(`← ${call.name}(${call.arguments}) returned ${result}`);
      messages.push({ role: 'tool', name: call.name, toolCallId: call.id, content: result });
    }
  }
}

async function demo(): Promise<void> {
  const partner = await startPartner({ model: nanoFile, backend: 'auto' });
  try {
    for (const reason of partner.engine.status().selection?.reasons ?? []) note(reason);
    await tellStory(partner);
    await askWeather(partner);
  } finally {
    await partner.engine.close();
  }
  note('\nNext: npx perigee chat, npx perigee serve, npx perigee --help');
}

try {
  await demo();
} catch (error) {
  note(error instanceof PerigeeError ? error.message : `${error instanceof Error ? error.stack : error}`);
  process.exitCode = error instanceof PerigeeError ? error.exitCode : 1;
}
