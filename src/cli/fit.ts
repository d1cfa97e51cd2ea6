import { Command } from 'commander';
import { renderMemoryTables } from '../select/memory-table.ts';
import { defaultBatchSize, openModel, planModel } from './load-engine.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import {
  type EngineOptions,
  integer,
  option,
  withConfigFile,
  withContextOption,
  withEngineOptions,
  withJsonOption,
} from './options.ts';
import { print, printJson } from './output.ts';

interface FitOptions extends EngineOptions {
  readonly json?: boolean;
}

/** `perigee fit`: whether a model fits in this machine's memory and GPUs. Exit code 2 when it does not. */
export function fitCommand(): Command {
  const command = new Command('fit')
    .description("show whether a model fits in this machine's memory and GPUs, group by group")
    .argument('[model]', modelHelp)
    .addOption(option('--chunk-size <tokens>', 'most tokens of one engine step', (flag) => integer(flag, 1)))
    .action(fit);
  return withConfigFile(withJsonOption(withContextOption(withEngineOptions(command))));
}

async function fit(argument: string | undefined, options: FitOptions): Promise<void> {
  const model = await openModel(await modelPath(argument), options);
  const { plan } = planModel(model, { ...options, maxBatchSize: defaultBatchSize });
  const { backend, placement, memory } = plan;
  const short = memory.find(({ fits }) => !fits);
  if (options.json) printJson({ backend, placement, memory, fits: short === undefined });
  else {
    print(`${backend}: ${placement}`);
    print(renderMemoryTables(memory));
    if (short !== undefined) print(short.advice);
  }
  // main() gives the exit code of a command that ended well; "does not fit" is an answer, and scripts want to hear it.
  if (short !== undefined) process.exitCode = 2;
}
