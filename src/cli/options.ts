/** The options that commands share, and where their values come from: flag, then PERIGEE_* variable, then YAML file, then default. */
import { readFileSync } from 'node:fs';
import { type Command, CommanderError, Option } from 'commander';
import { parse } from 'yaml';
import { perigeeError } from '../errors.ts';
import { backends } from '../select/select.ts';
import { isaNames } from '../select/tables.ts';
import { print, printJson } from './output.ts';

/** Parses an option that is a whole number from `least` on, up to `most` where there is one. */
export function integer(option: string, least: number, most = Number.MAX_SAFE_INTEGER): (text: string) => number {
  const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
  return (text) => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isSafeInteger(value) && value >= least && value <= most) return value;
    throw perigeeError('OPTION_INVALID', { option, value: text, expected: `a whole number ${range}` });
  };
}

/** Parses an option that is a number from `least` to `most`. */
export function number(option: string, least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== '' && value >= least && value <= most) return value;
    throw perigeeError('OPTION_INVALID', { option, value: text, expected: `a number from ${least} to ${most}` });
  };
}

/** An option that PERIGEE_* and the YAML file may set as well. `flags` is "--name <value>" or "--name". */
export function option(flags: string, description: string, read?: (flag: string) => (text: string) => number): Option {
  const made = new Option(flags, description);
  made.env(`PERIGEE_${made.name().replaceAll('-', '_').toUpperCase()}`);
  return read === undefined ? made : made.argParser(read(`--${made.name()}`));
}

/** What loading a model depends on; plain data, for it travels to the engine process. */
export interface EngineOptions {
  readonly backend: string;
  readonly threads?: number;
  readonly isa?: string;
  /** A file of KTransformers' optimize rules: what goes to which GPU. */
  readonly optimizeConfigPath?: string;
  readonly exactActivations?: boolean;
  readonly yarnBetaFast?: number;
  readonly context?: number;
  /** Most tokens of one engine step. */
  readonly chunkSize?: number;
  /** Most requests that generate at once. */
  readonly maxBatchSize?: number;
  /** Positions of the KV cache, for all requests together. */
  readonly cacheTokens?: number;
}

export function withEngineOptions(command: Command): Command {
  const chosen = command
    .addOption(option('--backend <name>', `where to run: auto, ${backends.join(', ')}`).default('auto'))
    .addOption(option('--isa <name>', `force kernels, and the backend that has them: ${isaNames.join(', ')}`))
    .addOption(option('--optimize-config-path <file>', "what goes to which GPU, as KTransformers' optimize rules"));
  return withRankOptions(chosen);
}

/** What is left of them where the backends are named otherwise. */
export function withRankOptions(command: Command): Command {
  return command
    .addOption(
      option('--threads <n>', 'ranks that share the work (default: available cores)', (flag) => integer(flag, 1)),
    )
    .addOption(option('--exact-activations', 'keep activations as floats: slower, for reference runs'))
    .addOption(option('--yarn-beta-fast <x>', "replaces the model's YaRN beta_fast", (flag) => number(flag, 0, 1e6)));
}

export function withContextOption(command: Command): Command {
  return command.addOption(
    option('--context <tokens>', 'most tokens of prompt and answer together', (flag) => integer(flag, 1)),
  );
}

export function withJsonOption(command: Command): Command {
  return command.addOption(new Option('--json', 'print one JSON object on stdout and nothing else there'));
}

export interface SamplingFlags {
  readonly temperature?: number;
  readonly topP?: number;
  readonly seed?: number;
  readonly maxTokens: number;
}

export function withSamplingOptions(command: Command): Command {
  return command
    .addOption(
      option('--temperature <x>', 'randomness; 0 always takes the likeliest token', (flag) => number(flag, 0, 2)),
    )
    .addOption(
      option('--top-p <x>', 'sample among the likeliest tokens of this total probability', (flag) =>
        number(flag, 0, 1),
      ),
    )
    .addOption(option('--seed <n>', 'same seed, same answer', (flag) => integer(flag, 0)))
    .addOption(option('--max-tokens <n>', 'most tokens to generate', (flag) => integer(flag, 1)).default(1024));
}

/** Adds --config and --print-config, and fills in the file's values before the command runs. */
export function withConfigFile(command: Command): Command {
  return command
    .addOption(new Option('--config <file>', 'YAML file of option values, "name: value"').env('PERIGEE_CONFIG'))
    .addOption(new Option('--print-config', 'print every option with its value and origin, and stop'))
    .hook('preAction', (_, acting) => {
      const { config, printConfig, json } = acting.opts<{ config?: string; printConfig?: boolean; json?: boolean }>();
      if (config !== undefined) applyConfigFile(acting, config);
      if (printConfig !== true) return;
      printOrigins(acting, json === true);
      throw new CommanderError(0, 'perigee.printed', '');
    });
}

function applyConfigFile(command: Command, file: string): void {
  const known = new Map(command.options.map((each) => [each.name(), each]));
  for (const [key, value] of Object.entries(readConfigFile(file))) {
    const name = key.replaceAll('_', '-');
    const target = known.get(name);
    if (target === undefined) {
      if (anyCommandHas(command, name)) continue;
      throw perigeeError('CONFIG_UNREADABLE', { file, why: `there is no option '${key}'` });
    }
    const attribute = target.attributeName();
    const source = command.getOptionValueSource(attribute);
    if (source !== undefined && source !== 'default') continue;
    const parsed = target.parseArg === undefined ? value : target.parseArg(String(value), undefined as never);
    command.setOptionValueWithSource(attribute, parsed, 'config');
  }
}

/** One file may serve several commands. */
function anyCommandHas(command: Command, name: string): boolean {
  return (command.parent?.commands ?? []).some((each) => each.options.some((candidate) => candidate.name() === name));
}

function readConfigFile(file: string): Record<string, unknown> {
  let content: unknown;
  try {
    content = parse(readFileSync(file, 'utf8'));
  } catch (cause) {
    throw perigeeError(
      'CONFIG_UNREADABLE',
      { file, why: cause instanceof Error ? cause.message : `${cause}` },
      { cause },
    );
  }
  if (content === null) return {};
  if (typeof content !== 'object' || Array.isArray(content)) {
    throw perigeeError('CONFIG_UNREADABLE', { file, why: 'it is not a list of "name: value" lines' });
  }
  return content as Record<string, unknown>;
}

function printOrigins(command: Command, json: boolean): void {
  const rows = command.options
    .filter((each) => !['config', 'print-config', 'json'].includes(each.name()))
    .map((each) => {
      const attribute = each.attributeName();
      const value =
        each.name() === 'api-key' ? hidden(command.getOptionValue(attribute)) : command.getOptionValue(attribute);
      return { name: each.name(), value: value ?? null, origin: originOf(command, each) };
    });
  if (json) {
    printJson(Object.fromEntries(rows.map(({ name, value, origin }) => [name, { value, origin }])));
    return;
  }
  const width = Math.max(...rows.map(({ name }) => name.length));
  for (const { name, value, origin } of rows) print(`${name.padEnd(width)}  ${value ?? '-'}  (${origin})`);
}

function hidden(secret: unknown): string | undefined {
  return secret === undefined ? undefined : '***';
}

function originOf(command: Command, each: Option): string {
  const origins: Record<string, string> = {
    cli: 'flag',
    env: `environment variable ${each.envVar}`,
    config: 'configuration file',
    default: 'default',
  };
  return origins[command.getOptionValueSource(each.attributeName()) ?? 'default'] ?? 'default';
}
