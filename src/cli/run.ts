import { Command, Option } from 'commander';
import { perigeeError } from '../errors.ts';
import { answer, noteRates, ratesOf, samplingFrom, showEvent, startPartner } from './converse.ts';
import { modelPath, splitModelAndText } from './model-argument.ts';
import {
  type EngineOptions,
  type SamplingFlags,
  withConfigFile,
  withContextOption,
  withEngineOptions,
  withJsonOption,
  withSamplingOptions,
} from './options.ts';
import { note, print, printJson } from './output.ts';
import { readText } from './tokenize.ts';

interface RunOptions extends EngineOptions, SamplingFlags {
  readonly system?: string;
  readonly json?: boolean;
}

/** `perigee run`: one answer to one prompt. */
export function runCommand(): Command {
  const command = new Command('run')
    .description('answer one prompt')
    .usage('[options] [model] <prompt...>')
    .argument(
      '[words...]',
      'the prompt (- reads it from standard input); a first word that is a file or folder, or ends in .gguf, is the model',
    )
    .addOption(new Option('--system <text>', 'a system message'))
    .action(run);
  return withConfigFile(withJsonOption(withSamplingOptions(withContextOption(withEngineOptions(command)))));
}

async function run(words: readonly string[], options: RunOptions): Promise<void> {
  const { model, text } = splitModelAndText(words);
  const prompt = text === '-' ? await readText('-') : text;
  if (prompt.trim() === '')
    throw perigeeError('OPTION_INVALID', {
      option: 'The prompt',
      value: prompt,
      expected: 'some text, after the options',
    });
  const partner = await startPartner({ ...options, model: await modelPath(model) });
  const selection = partner.engine.status().selection;
  note(`${partner.engine.config.name} on ${selection?.backend} ${selection?.isa}, ${selection?.threads} ranks`);
  try {
    const messages = [
      ...(options.system === undefined ? [] : [{ role: 'system', content: options.system }]),
      { role: 'user', content: prompt },
    ];
    const turn = { messages, sampling: samplingFrom(partner.sampling, options), maxTokens: options.maxTokens };
    const { message, finished } = await answer(partner, turn, options.json ? () => {} : showEvent);
    if (options.json) {
      const rates = ratesOf(finished);
      printJson({
        ...selection,
        text: message.content,
        finish_reason: finished.reason,
        prompt: { tokens: rates.promptTokens, tokens_per_second: rates.promptPerSecond },
        decode: { tokens: rates.decodedTokens, tokens_per_second: rates.decodedPerSecond },
      });
    } else {
      print();
      noteRates(finished);
    }
  } finally {
    await partner.engine.close();
  }
}
