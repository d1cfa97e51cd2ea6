#!/usr/bin/env node
/** The command `perigee`: reads argv, runs one command, and turns errors into a sentence and an exit code. */
import { Command, CommanderError } from 'commander';
import { PerigeeError } from '../errors.ts';
import { benchCommand } from './bench.ts';
import { chatCommand } from './chat.ts';
import { conformCommand } from './conform.ts';
import { convertCommand } from './convert.ts';
import { doctorCommand } from './doctor.ts';
import { fitCommand } from './fit.ts';
import { inspectCommand } from './inspect.ts';
import { takeKtransformersFlags } from './ktransformers.ts';
import { note } from './output.ts';
import { runCommand } from './run.ts';
import { scoreCommand } from './score.ts';
import { serveCommand } from './serve.ts';
import { tokenizeCommand } from './tokenize.ts';
import { packageVersion } from './version.ts';

function makeProgram(): Command {
  const program = new Command('perigee')
    .description('Runs Kimi K2 and its family from GGUF files. Without a MODEL, commands use Nano, the embedded model.')
    .version(packageVersion())
    .showHelpAfterError('(perigee COMMAND --help lists the options)')
    .exitOverride();
  const commands = [
    serveCommand,
    runCommand,
    chatCommand,
    inspectCommand,
    fitCommand,
    doctorCommand,
    benchCommand,
    tokenizeCommand,
    scoreCommand,
    conformCommand,
    convertCommand,
  ];
  for (const make of commands) program.addCommand(make().copyInheritedSettings(program));
  return program;
}

/** Runs one command line and returns the exit code: 0 done, 1 failed, 2 the request cannot work as given. */
async function main(argv: readonly string[]): Promise<number> {
  try {
    await makeProgram().parseAsync(argv[0] === 'serve' ? takeKtransformersFlags(argv, note) : argv, { from: 'user' });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (error instanceof PerigeeError) {
      note(`perigee: ${error.message}`);
      return error.exitCode;
    }
    note(`perigee: ${error instanceof Error ? (error.stack ?? error.message) : error}`);
    return 1;
  }
}

// A reader that closed the pipe (head, less) wants no more; that is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

process.exitCode = (await main(process.argv.slice(2))) || process.exitCode;
