import { statSync } from 'node:fs';
import { Command, Option } from 'commander';
import { convertCheckpoint } from '../convert/convert.ts';
import { type ConvertType, convertTypes } from '../convert/tensor-types.ts';
import { formatBytes } from '../gguf/sizes.ts';
import { withConfigFile, withJsonOption } from './options.ts';
import { note, print, printJson, showProgress } from './output.ts';

interface ConvertOptions {
  readonly type: ConvertType;
  readonly head?: ConvertType;
  readonly json?: boolean;
}

/** `perigee convert`: a Hugging Face checkpoint folder to one GGUF file. */
export function convertCommand(): Command {
  const command = new Command('convert')
    .description('make a GGUF file from a Hugging Face checkpoint folder')
    .argument('<dir>', 'the folder with config.json and the safetensors files')
    .argument('<out.gguf>', 'the file to write')
    .addOption(new Option('--type <type>', 'how weights are stored').choices(convertTypes).makeOptionMandatory())
    .addOption(
      new Option('--head <type>', 'how the output matrix is stored (default: as --type implies)').choices(convertTypes),
    )
    .action(convert);
  return withConfigFile(withJsonOption(command));
}

async function convert(folder: string, path: string, options: ConvertOptions): Promise<void> {
  const progress = showProgress('converting');
  const result = await convertCheckpoint(folder, path, {
    type: options.type,
    ...(options.head && { head: options.head }),
    onProgress: ({ bytesWritten, bytesTotal }) => progress.update(bytesWritten, bytesTotal),
  }).finally(() => progress.stop());
  const bytes = statSync(path).size;
  if (options.json) return printJson({ ...result, bytes });
  for (const line of result.notes) note(line);
  const types = Object.entries(result.types).map(([type, count]) => `${count} ${type}`);
  print(`${path}: ${formatBytes(bytes)}, ${result.tensors} tensors (${types.join(', ')})`);
}
