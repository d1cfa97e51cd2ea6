import { Command } from 'commander';
import { inspectModel, inspectText } from '../model/inspect.ts';
import { openModel } from './load-engine.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import { number, option, withConfigFile, withJsonOption } from './options.ts';
import { print, printJson } from './output.ts';

interface InspectOptions {
  readonly yarnBetaFast?: number;
  readonly json?: boolean;
}

/** `perigee inspect`: what is in a model file, without loading it. */
export function inspectCommand(): Command {
  const command = new Command('inspect')
    .description('show what is in a model file, without loading it')
    .argument('[model]', modelHelp)
    .addOption(option('--yarn-beta-fast <x>', "replaces the model's YaRN beta_fast", (flag) => number(flag, 0, 1e6)))
    .action(inspect);
  return withConfigFile(withJsonOption(command));
}

async function inspect(argument: string | undefined, options: InspectOptions): Promise<void> {
  const { gguf, config } = await openModel(await modelPath(argument), options);
  if (options.json) printJson(inspectModel(gguf, config));
  else print(inspectText(gguf, config));
}
