import { statSync } from 'node:fs';
import { basename } from 'node:path';
import { Command, Option } from 'commander';
import { destination, type Logger, pino } from 'pino';
import { RemoteEngine } from '../engine-process/remote-engine.ts';
import { perigeeError } from '../errors.ts';
import type { GgufModel } from '../gguf/types.ts';
import { inspectModel } from '../model/inspect.ts';
import { entryFile } from '../runtime/assets.ts';
import { samplingDefaults } from '../sampling/defaults.ts';
import type { SamplingOptions } from '../sampling/types.ts';
import type { EngineStatus } from '../scheduler/types.ts';
import { listen, shutDown, untilSignalled } from '../server/lifecycle.ts';
import type { ServedModel } from '../server/options.ts';
import { createServer, type Server } from '../server/server.ts';
import { openTokenizer } from '../tokenizer/open.ts';
import { type LoadOptions, type OpenedModel, openModel } from './load-engine.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import {
  type EngineOptions,
  integer,
  number,
  option,
  withConfigFile,
  withContextOption,
  withEngineOptions,
} from './options.ts';
import { note, showProgress } from './output.ts';

interface ServeOptions extends EngineOptions {
  readonly host: string;
  readonly port: number;
  readonly apiKey?: string;
  readonly insecure?: boolean;
  readonly model?: string;
  readonly modelName?: string;
  readonly queueLength?: number;
  /** Seconds. */
  readonly requestTimeout?: number;
  readonly temperature?: number;
  readonly topP?: number;
}

/** A day; and timers hold little more than three weeks. */
const mostSeconds = 86_400;
/** Beyond the tokens of a step it would change nothing. */
const mostBatchSize = 1024;

/** `perigee serve`: the HTTP server. Its flags may be spelled KTransformers' way (ktransformers.ts). */
export function serveCommand(): Command {
  const command = new Command('serve')
    .description("serve a model over HTTP, OpenAI's way; KTransformers' flags are understood")
    .argument('[model]', modelHelp)
    .addOption(option('--model <path>', 'the model, as an option'))
    .addOption(option('--model-name <id>', 'the name clients see (default: from the file name)'))
    .addOption(
      option('--host <address>', 'where to listen; others than this machine need --api-key').default('127.0.0.1'),
    )
    .addOption(option('--port <n>', 'port; 0 takes a free one', (flag) => integer(flag, 0, 65_535)).default(8000))
    .addOption(option('--api-key <key>', 'clients must send this key'))
    .addOption(new Option('--insecure', 'listen on a network without a key'))
    .addOption(option('--queue-length <n>', 'requests that may wait before others get 429', (flag) => integer(flag, 0)))
    .addOption(
      option('--request-timeout <seconds>', 'most time a request may take, waiting included', (flag) =>
        integer(flag, 1, mostSeconds),
      ),
    )
    .addOption(option('--chunk-size <tokens>', 'most tokens of one engine step', (flag) => integer(flag, 1)))
    .addOption(
      option('--max-batch-size <n>', 'most requests that generate at once', (flag) => integer(flag, 1, mostBatchSize)),
    )
    .addOption(
      option(
        '--cache-tokens <n>',
        'size of the cache that all requests share (default: a full context, or 256 MB)',
        (flag) => integer(flag, 1),
      ),
    )
    .addOption(option('--temperature <x>', 'for requests that do not say', (flag) => number(flag, 0, 2)))
    .addOption(option('--top-p <x>', 'for requests that do not say', (flag) => number(flag, 0, 1)))
    .action(serve);
  return withConfigFile(withContextOption(withEngineOptions(command)));
}

async function serve(argument: string | undefined, options: ServeOptions): Promise<void> {
  const path = await modelPath(argument ?? options.model);
  const model = await openModel(path, options);
  const tokenizer = await openTokenizer(path);
  const logger = makeLogger();
  const engine = startEngine(path, options, logger);
  const served = servedModel(model, path, options.modelName);
  const server = createServer({
    engine,
    tokenizer,
    model: served,
    sampling: samplingFor(model.gguf, options),
    logger,
    apiKey: options.apiKey,
  });
  try {
    const address = await openPort(server, options);
    await engine.ready;
    for (const reason of engine.status().selection?.reasons ?? []) note(reason);
    note(`${served.id} is ready at ${address}/v1 (POST ${address}/v1/chat/completions)`);
  } catch (error) {
    await shutDown(server, { engine, logger, drainMilliseconds: 0 });
    throw error;
  }
  await untilSignalled(server, { engine, logger });
}

/** What requests get that do not say: the flags, else the model's own recommendation. */
function samplingFor(gguf: GgufModel, { temperature, topP }: ServeOptions): SamplingOptions {
  const defaults = samplingDefaults(gguf);
  return { ...defaults, temperature: temperature ?? defaults.temperature, topP: topP ?? defaults.topP };
}

/** JSON lines on stderr. A person at a terminal sees what needs them only. */
function makeLogger(): Logger {
  return pino({ level: process.stderr.isTTY ? 'warn' : 'info' }, destination(2));
}

function startEngine(path: string, options: ServeOptions, logger: Logger): RemoteEngine {
  const { backend, threads, isa, exactActivations, yarnBetaFast, context, queueLength, requestTimeout } = options;
  const { chunkSize, maxBatchSize, cacheTokens, optimizeConfigPath } = options;
  const given = {
    threads,
    isa,
    optimizeConfigPath,
    exactActivations,
    yarnBetaFast,
    context,
    chunkSize,
    maxBatchSize,
    cacheTokens,
  };
  const present = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const loadOptions: LoadOptions = { model: path, backend, ...present };
  const progress = showProgress('loading');
  return new RemoteEngine({
    entry: entryFile('src/cli/engine'),
    loadOptions,
    limits: {
      queueLength,
      deadlineMilliseconds: requestTimeout === undefined ? undefined : 1000 * requestTimeout,
    },
    onProgress: ({ bytesRead, bytesTotal }) => {
      progress.update(bytesRead, bytesTotal);
      if (bytesRead === bytesTotal) progress.stop();
    },
    onChange: (status) => logChange(logger, status),
  });
}

function logChange(logger: Logger, { state, restarts, failures, restartsIn, lastFailure }: EngineStatus): void {
  const change = { state, restarts, failures, restartsIn, lastFailure };
  if (state === 'ready' || state === 'closed') logger.info(change, 'engine');
  else logger.error(change, 'engine');
}

function servedModel({ gguf, config }: OpenedModel, path: string, wish: string | undefined): ServedModel {
  const file = gguf.files[0]?.path ?? path;
  const fromFile = basename(file, '.gguf').replace(/-\d{5}-of-\d{5}$/, '');
  const id = wish ?? fromFile;
  return {
    id,
    aliases: [config.name, fromFile].filter((alias) => alias !== id),
    created: Math.floor(statSync(file).mtimeMs / 1000),
    inspection: inspectModel(gguf, config),
  };
}

async function openPort(server: Server, options: ServeOptions): Promise<string> {
  const { host, port, apiKey, insecure } = options;
  try {
    return await listen(server, { host, port, apiKey, insecure });
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
    const why = { EADDRINUSE: 'another program listens there', EACCES: 'this user may not open it' }[`${code}`];
    if (why === undefined) throw cause;
    throw perigeeError('PORT_UNAVAILABLE', { host, port, why }, { cause });
  }
}
