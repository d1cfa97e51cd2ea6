import { writeFile } from 'node:fs/promises';
import { Command, Option } from 'commander';
import { renderPrompt } from '../chat/prompt.ts';
import {
  assertReference,
  type CandidateResult,
  type ConformResult,
  type Contestant,
  conform,
} from '../conform/conform.ts';
import { routerBiases } from '../conform/router-bias.ts';
import { divergenceLine, notFinite, routingLine, tapCells, tapColumns, tapRows, verdict } from '../conform/table.ts';
import { stepTokens } from '../conform/trace.ts';
import { perigeeError } from '../errors.ts';
import { assertFits } from '../select/memory-table.ts';
import { backends } from '../select/select.ts';
import { openTokenizer } from '../tokenizer/open.ts';
import type { Tokenizer } from '../tokenizer/types.ts';
import { loadModel, type OpenedModel, openModel, planModel, thisMachine } from './load-engine.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import { type EngineOptions, withConfigFile, withJsonOption, withRankOptions } from './options.ts';
import { note, print, printJson, showProgress } from './output.ts';
import { checkPrompts, parsePrompts } from './score.ts';
import { readText } from './tokenize.ts';
import { packageVersion } from './version.ts';

interface ConformOptions extends Omit<EngineOptions, 'backend' | 'isa'> {
  readonly backends: string;
  readonly prompt?: string;
  readonly tokens?: string;
  readonly report?: string;
  readonly json?: boolean;
}

/**
 * What is run when no text is given: three pages of the cache, in words that Nano knows as well. Text that a small model does not
 * know sets its router on edge: there a GPU's rounding sends tokens to other experts, which says nothing about its kernels.
 */
const defaultConversation = [
  { role: 'user', content: 'Who are you?' },
  {
    role: 'assistant',
    content:
      'Hello! I am Nano, a tiny demonstration model with the same architecture as Kimi K2. I can tell short stories, answer simple questions and call tools.',
  },
  { role: 'user', content: 'Tell me a short story about an otter and a lantern.' },
  {
    role: 'assistant',
    content:
      'Long ago, an otter named Tom lived by the mountain. Tom was quiet and liked rice. One day Tom lost the white lantern. Tom looked behind the house and under the bed, but it was not there. Then Lea the hedgehog came to help. Together they walked to the mountain and looked again. Tom smiled and gave the lantern to Lea. From that day on they were best friends.',
  },
  { role: 'user', content: 'What is the capital of Italy?' },
  { role: 'assistant', content: 'The capital of Italy is Rome.' },
] as const;

/** `perigee conform`: whether backends compute the same, layer by layer, and where they first part. */
export function conformCommand(): Command {
  const command = new Command('conform')
    .description('run a prompt on several backends and compare them layer by layer')
    .argument('[model]', modelHelp)
    .addOption(
      new Option(
        '--backends <list>',
        'backends, each with a kernel set if you like (wasm:simd128,native:avx2,hybrid:relaxed); the first, a CPU backend, is the reference',
      ).default('wasm,native'),
    )
    .addOption(new Option('--prompt <text>', 'the text to run, as it is; default: a conversation'))
    .addOption(
      new Option('--tokens <T.json>', 'token ids to run, a JSON array (- is standard input)').conflicts('prompt'),
    )
    .addOption(new Option('--report <file>', 'write an HTML page with pictures'))
    .action(run);
  return withConfigFile(withJsonOption(withRankOptions(command)));
}

async function run(argument: string | undefined, options: ConformOptions): Promise<void> {
  const names = parseBackends(options.backends);
  const path = await modelPath(argument);
  const model = await openModel(path, options);
  const tokenizer = await openTokenizer(path);
  const tokens = await promptTokens(options, tokenizer);
  checkPrompts([tokens], model.config.vocabulary, model.config.context);
  const sized = { ...options, context: tokens.length, chunkSize: stepTokens(model.config) };
  // Refused now if at all: minutes of running the reference should not end in a wrong name.
  for (const [index, name] of names.entries()) {
    const { plan } = planModel(model, { ...sized, ...backendOf(name) });
    if (index === 0) assertReference({ name, backend: plan.backend });
    assertFits(plan.memory);
  }
  const contestants = names.map((name) => contestant(name, model, sized));
  const biases = await routerBiases(model.gguf, model.config);
  await conclude(await conform(contestants, tokens, (layer) => biases.get(layer) ?? null), tokenizer, options);
}

/** Says what was found in every form asked for; a backend outside its band makes the process exit with 1. */
export async function conclude(
  result: ConformResult,
  tokenizer: Tokenizer,
  options: Pick<ConformOptions, 'report' | 'json'>,
): Promise<void> {
  if (options.report !== undefined) await writeReport(options.report, result, tokenizer);
  if (options.json) printJson(jsonOf(result));
  else printResult(result);
  if (result.candidates.some(({ agrees }) => !agrees)) process.exitCode = 1;
}

function parseBackends(list: string): string[] {
  const names = list.split(',').map((name) => name.trim());
  if (names.length >= 2 && names.every((name) => /^\w+(:\w+)?$/.test(name))) return names;
  throw perigeeError('OPTION_INVALID', {
    option: '--backends',
    value: list,
    expected: `two or more of ${backends.join(', ')}, comma between, such as wasm,native or wasm:scalar,native:avx2`,
  });
}

async function promptTokens({ prompt, tokens }: ConformOptions, tokenizer: Tokenizer): Promise<readonly number[]> {
  if (tokens === undefined) {
    if (prompt === undefined) {
      return renderPrompt({ messages: defaultConversation, tools: [], templateOptions: {} }, tokenizer).ids;
    }
    const ids = tokenizer.encode(prompt, { specials: false });
    if (ids.length > 0) return ids;
    throw perigeeError('OPTION_INVALID', { option: '--prompt', value: prompt, expected: 'some text' });
  }
  const [ids = [], ...others] = parsePrompts(tokens, await readText(tokens));
  if (others.length === 0) return ids;
  throw perigeeError('INPUT_UNREADABLE', { file: tokens, why: 'it holds several prompts, and conform runs one' });
}

/** "native:avx2" as the options that mean it. */
function backendOf(name: string): Pick<EngineOptions, 'backend' | 'isa'> {
  const [backend = '', isa] = name.split(':');
  return { backend, ...(isa !== undefined && { isa }) };
}

function contestant(name: string, model: OpenedModel, options: Omit<EngineOptions, 'backend' | 'isa'>): Contestant {
  return {
    name,
    async load(wishes) {
      const progress = showProgress(`loading ${name}`);
      const { runtime } = await loadModel(
        model,
        { ...options, ...backendOf(name), ...wishes },
        ({ bytesRead, bytesTotal }) => progress.update(bytesRead, bytesTotal),
      ).finally(() => progress.stop());
      return runtime;
    },
  };
}

async function writeReport(path: string, result: ConformResult, tokenizer: Tokenizer): Promise<void> {
  // Loaded here, for drawing takes a library that no other command needs.
  const { renderReport } = await import('../conform/report.ts');
  const pieces = result.tokens.map((token) => tokenizer.decode([token]));
  const html = await renderReport({ result, machine: thisMachine(), pieces, version: packageVersion() });
  await writeFile(path, html).catch((cause: Error) => {
    throw perigeeError('OUTPUT_UNWRITABLE', { path, why: cause.message }, { cause });
  });
  note(`the report is in ${path}`);
}

function printResult({ config, tokens, reference, candidates }: ConformResult): void {
  note(`${config.name}, ${tokens.length} tokens`);
  for (const { name, backend, isa, threads } of [reference, ...candidates]) {
    note(`${name}: ${backend} ${isa}, ${threads} ranks`);
  }
  for (const candidate of candidates) {
    print();
    printTable([tapColumns, ...tapRows(candidate).map((row) => tapCells(row, candidate.band))]);
    print(divergenceLine(candidate, reference.name));
    if (candidate.routerTokens.length > 0) print(routingLine(candidate));
    const strays = notFinite(candidate);
    if (strays > 0) print(`${strays} values are NaN or infinite`);
    print(verdict(candidate, reference.name));
  }
}

function printTable(rows: readonly (readonly string[])[]): void {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  for (const row of rows)
    print(
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('  ')
        .trimEnd(),
    );
}

/** What --json prints; measures without bounds are null. */
function jsonOf({ config, tokens, reference, candidates }: ConformResult): unknown {
  return { model: config.name, tokens, reference, candidates: candidates.map(candidateJson) };
}

function candidateJson(candidate: CandidateResult): unknown {
  const { name, backend, isa, threads, band, agrees, first, points, routerTokens, leftOut, divergence } = candidate;
  const { tokens, mean, allowed, ofRounding } = divergence;
  return {
    name,
    backend,
    isa,
    threads,
    band: band.name,
    limits: band.limits,
    agrees,
    first,
    kl: { mean, max: Math.max(...tokens), allowed, of_rounding: ofRounding, tokens },
    router_tokens: routerTokens,
    left_out: leftOut,
    points: points.map(({ tap, layer, width, within, differing, differingTokens, notFinite: strays, ...rest }) => ({
      tap,
      layer,
      width,
      within,
      differing,
      differing_tokens: differingTokens,
      not_finite: strays,
      max_abs: rest.maxAbs,
      nmse: rest.nmse,
      cosine_difference: rest.cosine,
      first: rest.first,
    })),
  };
}
