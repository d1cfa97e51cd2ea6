import { createInterface } from 'node:readline/promises';
import { Command, Option } from 'commander';
import type { Message } from '../chat/types.ts';
import { PerigeeError } from '../errors.ts';
import { answer, noteRates, type Partner, samplingFrom, showEvent, startPartner } from './converse.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import {
  type EngineOptions,
  type SamplingFlags,
  withConfigFile,
  withContextOption,
  withEngineOptions,
  withSamplingOptions,
} from './options.ts';
import { note, print } from './output.ts';

interface ChatOptions extends EngineOptions, SamplingFlags {
  readonly system?: string;
}

/** `perigee chat`: a conversation in the terminal. */
export function chatCommand(): Command {
  const command = new Command('chat')
    .description('talk with a model in the terminal')
    .argument('[model]', modelHelp)
    .addOption(new Option('--system <text>', 'a system message'))
    .action(chat);
  return withConfigFile(withSamplingOptions(withContextOption(withEngineOptions(command))));
}

async function chat(argument: string | undefined, options: ChatOptions): Promise<void> {
  const partner = await startPartner({ ...options, model: await modelPath(argument) });
  note(`${partner.engine.config.name}. Ctrl-C stops an answer; /new starts over; Ctrl-D ends.`);
  try {
    await converse(partner, options);
  } finally {
    await partner.engine.close();
  }
}

async function converse(partner: Partner, options: ChatOptions): Promise<void> {
  const opening: Message[] = options.system === undefined ? [] : [{ role: 'system', content: options.system }];
  let messages = opening;
  let stop: AbortController | null = null;
  const terminal = createInterface({ input: process.stdin, output: process.stderr, prompt: '> ' });
  terminal.on('SIGINT', () => (stop === null ? terminal.close() : stop.abort()));
  let open = true;
  terminal.once('close', () => {
    open = false;
  });
  terminal.prompt();
  for await (const line of terminal) {
    if (line.trim() === '/new') messages = opening;
    else if (line.trim() !== '') {
      stop = new AbortController();
      messages = await reply(partner, [...messages, { role: 'user', content: line }], options, stop.signal);
      stop = null;
    }
    // Lines of a pipe are still to be answered after its end.
    if (open) terminal.prompt();
  }
}

/** The conversation with the model's answer, or as far as it came before it was stopped or refused. */
async function reply(
  partner: Partner,
  messages: Message[],
  options: ChatOptions,
  signal: AbortSignal,
): Promise<Message[]> {
  let heard = '';
  try {
    const turn = { messages, sampling: samplingFrom(partner.sampling, options), maxTokens: options.maxTokens, signal };
    const { message, finished } = await answer(partner, turn, (event) => {
      if (event.type === 'text') heard += event.text;
      showEvent(event);
    });
    print();
    noteRates(finished);
    return [...messages, message];
  } catch (error) {
    print();
    if (signal.aborted) return [...messages, { role: 'assistant', content: heard }];
    if (!(error instanceof PerigeeError) || error.code === 'ENGINE_FAILED') throw error;
    note(error.message);
    return messages.slice(0, -1);
  }
}
