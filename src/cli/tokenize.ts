import { readFile } from 'node:fs/promises';
import { text } from 'node:stream/consumers';
import { Command, Option } from 'commander';
import { perigeeError } from '../errors.ts';
import { nanoFile } from '../runtime/assets.ts';
import { openTokenizer } from '../tokenizer/open.ts';
import { withConfigFile, withJsonOption } from './options.ts';
import { print, printJson } from './output.ts';

interface TokenizeOptions {
  readonly file?: string;
  readonly text?: string;
  readonly specials?: boolean;
  readonly json?: boolean;
}

/** `perigee tokenize`: the token ids of a text. */
export function tokenizeCommand(): Command {
  const command = new Command('tokenize')
    .description('print the token ids of a text')
    .argument('[model]', 'a GGUF model, or a folder with tiktoken.model and tokenizer_config.json (default: Nano)')
    .addOption(new Option('--file <file>', 'read the text from here (- is standard input)').conflicts('text'))
    .addOption(new Option('--text <text>', 'the text itself'))
    .addOption(new Option('--specials', 'read names of control tokens in the text as control tokens'))
    .action(tokenize);
  return withConfigFile(withJsonOption(command));
}

async function tokenize(model: string | undefined, options: TokenizeOptions): Promise<void> {
  const input = options.text ?? (await readText(options.file ?? '-'));
  const tokenizer = await openTokenizer(model ?? nanoFile);
  const ids = tokenizer.encode(input, { specials: options.specials ?? false });
  if (options.json) printJson({ tokens: ids });
  else print(JSON.stringify(ids));
}

/** The UTF-8 text of `file`; `-` is standard input. */
export async function readText(file: string): Promise<string> {
  try {
    return file === '-' ? await text(process.stdin) : await readFile(file, 'utf8');
  } catch (cause) {
    throw perigeeError(
      'INPUT_UNREADABLE',
      { file, why: cause instanceof Error ? cause.message : `${cause}` },
      { cause },
    );
  }
}
