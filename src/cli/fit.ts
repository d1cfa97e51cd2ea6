import { Command } from 'commander';
import { renderMemoryTable } from '../model/fit.ts';
import { defaultBatchSize, memoryFor, openModel } from './load-engine.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import { type EngineOptions, integer, option, withConfigFile, withContextOption, withJsonOption } from './options.ts';
import { print, printJson } from './output.ts';

interface FitOptions extends Pick<EngineOptions, 'context' | 'chunkSize'> {
  readonly json?: boolean;
}

/** `perigee fit`: whether a model fits in this machine's memory. Exit code 2 when it does not. */
export function fitCommand(): Command {
  const command = new Command('fit')
    .description("show whether a model fits in this machine's memory, group by group")
    .argument('[model]', modelHelp)
    .addOption(option('--chunk-size <tokens>', 'most tokens of one engine step', (flag) => integer(flag, 1)))
    .action(fit);
  return withConfigFile(withJsonOption(withContextOption(command)));
}

async function fit(argument: string | undefined, options: FitOptions): Promise<void> {
  const table = memoryFor(await openModel(await modelPath(argument)), { ...options, maxBatchSize: defaultBatchSize });
  if (options.json) printJson(table);
  else {
    print(renderMemoryTable(table));
    if (!table.fits) print(table.advice);
  }
  // main() gives the exit code of a command that ended well; "does not fit" is an answer, and scripts want to hear it.
  if (!table.fits) process.exitCode = 2;
}
