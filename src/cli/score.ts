import { type FileHandle, open } from 'node:fs/promises';
import { Command, Option } from 'commander';
import { perigeeError } from '../errors.ts';
import { promptStep } from '../runtime/prompt-step.ts';
import type { Runtime } from '../runtime/runtime.ts';
import { loadModel, type OpenedModel, openModel } from './load-engine.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import { type EngineOptions, withConfigFile, withEngineOptions, withJsonOption } from './options.ts';
import { print, printJson, showProgress } from './output.ts';
import { readText } from './tokenize.ts';

interface ScoreOptions extends EngineOptions {
  readonly tokens: string;
  readonly out: string;
  readonly json?: boolean;
}

/** `perigee score`: the logits of every position of given token ids; the door for conformance tests. */
export function scoreCommand(): Command {
  const command = new Command('score')
    .description('write the logits of every position of given token ids')
    .argument('[model]', modelHelp)
    .addOption(
      new Option(
        '--tokens <T.json>',
        'a JSON array of token ids, or an array of such arrays (- is standard input)',
      ).makeOptionMandatory(),
    )
    .addOption(
      new Option('--out <L.f32>', 'where to write float32, little endian, [tokens][vocabulary]').makeOptionMandatory(),
    )
    .action(score);
  return withConfigFile(withJsonOption(withEngineOptions(command)));
}

async function score(argument: string | undefined, options: ScoreOptions): Promise<void> {
  const prompts = parsePrompts(options.tokens, await readText(options.tokens));
  const model = await openModel(await modelPath(argument), options);
  checkPrompts(prompts, model.config.vocabulary, model.config.context);
  const file = await openOutput(options.out);
  try {
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    const runtime = await load(model, { ...options, context: longest });
    try {
      const started = performance.now();
      for (const prompt of prompts) await writePrompt(runtime, prompt, file);
      report(runtime, prompts, (performance.now() - started) / 1000, options);
    } finally {
      await runtime.close();
    }
  } finally {
    await file.close();
  }
}

async function load(model: OpenedModel, options: EngineOptions): Promise<Runtime> {
  const progress = showProgress('loading');
  const { runtime } = await loadModel(model, options, ({ bytesRead, bytesTotal }) =>
    progress.update(bytesRead, bytesTotal),
  ).finally(() => progress.stop());
  return runtime;
}

/** Opened before the model is loaded: minutes of loading should not end in a wrong path. */
async function openOutput(path: string): Promise<FileHandle> {
  return open(path, 'w').catch((cause: Error) => {
    throw perigeeError('OUTPUT_UNWRITABLE', { path, why: cause.message }, { cause });
  });
}

function report(runtime: Runtime, prompts: readonly number[][], seconds: number, { out, json }: ScoreOptions): void {
  const tokens = prompts.reduce((sum, prompt) => sum + prompt.length, 0);
  const { backend, isa, threads, config } = runtime;
  const { vocabulary } = config;
  const rate = Number((tokens / seconds).toFixed(1));
  if (json) {
    printJson({ backend, isa, threads, out, prompts: prompts.length, tokens, vocabulary, tokens_per_second: rate });
  } else print(`${out}: ${tokens} tokens x ${vocabulary} logits, ${rate} tokens/s (${isa}, ${threads} ranks)`);
}

/** One prompt of token ids, or several, from JSON. */
export function parsePrompts(file: string, text: string): number[][] {
  const fail = (why: string) => perigeeError('INPUT_UNREADABLE', { file, why });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw fail(`it is not JSON (${cause instanceof Error ? cause.message : cause})`);
  }
  const isPrompt = (each: unknown): each is number[] =>
    Array.isArray(each) && each.length > 0 && each.every((id) => Number.isInteger(id));
  if (isPrompt(value)) return [value];
  if (Array.isArray(value) && value.length > 0 && value.every(isPrompt)) return value;
  throw fail('it must hold an array of token ids, or an array of such arrays, none of them empty');
}

/** Refuses tokens the model does not have and prompts beyond its context. */
export function checkPrompts(prompts: readonly (readonly number[])[], vocabulary: number, context: number): void {
  for (const prompt of prompts) {
    const stray = prompt.find((token) => token < 0 || token >= vocabulary);
    if (stray !== undefined) throw perigeeError('TOKEN_OUT_OF_RANGE', { token: stray, vocabulary });
    if (prompt.length > context)
      throw perigeeError('CONTEXT_LENGTH_EXCEEDED', { promptTokens: prompt.length, contextTokens: context });
  }
}

/** Runs a prompt alone, from position 0, and appends its logits to the file. */
async function writePrompt(runtime: Runtime, prompt: readonly number[], file: FileHandle): Promise<void> {
  const { limits } = runtime;
  const chunk = Math.min(limits.batchTokens, limits.batchOutputs);
  for (let begin = 0; begin < prompt.length; begin += chunk) {
    const logits = await runtime.step(promptStep(prompt, begin, begin + chunk));
    // A copy: the view is of shared memory and belongs to the runtime.
    await file.writeFile(new Uint8Array(logits.slice().buffer));
  }
}
