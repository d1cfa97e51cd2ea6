import { Command, Option } from 'commander';
import { perigeeError } from '../errors.ts';
import { modelConfig } from '../model/gguf.ts';
import { syntheticModel, syntheticShapes } from '../model/synthetic.ts';
import { modelTensors } from '../model/tensors.ts';
import { weightMixes } from '../model/weight-mix.ts';
import { cudaSupport, measureDevice } from '../runtime/cuda-addon.ts';
import { pageTokens, type Runtime } from '../runtime/runtime.ts';
import { type Asked, reportBench, type Speeds } from './bench-report.ts';
import { type LoadedModel, loadModel, type OpenedModel, openModel } from './load-engine.ts';
import { measureMachine } from './machine-limits.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import { type EngineOptions, integer, option, withConfigFile, withEngineOptions, withJsonOption } from './options.ts';
import { showProgress } from './output.ts';
import type { Measured } from './projection.ts';
import { tokenBytes } from './roofline.ts';

interface BenchOptions extends EngineOptions, Asked {
  readonly layers?: number;
  readonly prefill: number;
  readonly decode: number;
}

/** `perigee bench`: speed of prompts and answers, beside what the machine can do. */
export function benchCommand(): Command {
  const command = new Command('bench')
    .description("measure prefill and decode beside the machine's own limits")
    .argument('[model]', modelHelp)
    .addOption(
      new Option('--shape <name>', 'a random model of this shape, made in memory, instead of a file').choices(
        syntheticShapes,
      ),
    )
    .addOption(
      new Option('--layers <n>', 'MoE layers of the random model, after its dense one').argParser(
        integer('--layers', 0),
      ),
    )
    .addOption(new Option('--mix <type>', 'weight types of the random model').choices(weightMixes).default('q4_k_m'))
    .addOption(option('--prefill <n>', 'tokens of the prompt', (flag) => integer(flag, 1)).default(512))
    .addOption(
      option('--decode <n>', 'tokens of the answer, from an empty context', (flag) => integer(flag, 1)).default(64),
    )
    .addOption(option('--chunk-size <tokens>', 'most tokens of one engine step', (flag) => integer(flag, 1)))
    .action(bench);
  return withConfigFile(withJsonOption(withEngineOptions(command)));
}

async function bench(argument: string | undefined, options: BenchOptions): Promise<void> {
  const model = await benchModel(argument, options);
  const sized = { ...options, context: Math.max(options.prefill, options.decode) };
  const measured = await withLoaded(model, sized, 'loading', async ({ runtime, plan }) => {
    const { config, notes = [] } = runtime;
    return { speeds: await measure(runtime, options), plan, config, notes };
  });
  const { plan, config, notes } = measured;
  // A GPU runs answers as graphs, which tell nothing of their parts: those are timed in a run of their own.
  const speeds =
    plan.devices === null
      ? measured.speeds
      : await withLoaded(model, { ...sized, profile: true }, 'loading for stages', async (loaded) =>
          withStages(measured.speeds, await measure(loaded.runtime, options)),
        );
  const [part] = plan.devices?.parts ?? [];
  reportBench(options, {
    config,
    plan,
    notes,
    speeds,
    rounds,
    bytes: tokenBytes(config, modelTensors(model.gguf, config), plan),
    // After the model is gone: measuring takes memory and all cores.
    machine: plan.ranks === null ? null : await measureMachine(plan),
    deviceGbPerSecond: part === undefined ? null : measureDevice(part.device),
    deviceName: part === undefined ? null : nameOf(part.device),
  });
}

function nameOf(device: number): string | null {
  const support = cudaSupport();
  return support.available ? (support.devices.find(({ index }) => index === device)?.name ?? null) : null;
}

async function withLoaded<T>(
  model: OpenedModel,
  options: EngineOptions & { readonly profile?: boolean },
  what: string,
  use: (loaded: LoadedModel) => Promise<T>,
): Promise<T> {
  const progress = showProgress(what);
  const loaded = await loadModel(model, options, ({ bytesRead, bytesTotal }) =>
    progress.update(bytesRead, bytesTotal),
  ).finally(() => progress.stop());
  try {
    return await use(loaded);
  } finally {
    await loaded.runtime.close();
  }
}

async function benchModel(argument: string | undefined, options: BenchOptions): Promise<OpenedModel> {
  if (options.shape === undefined) return openModel(await modelPath(argument), options);
  if (argument !== undefined) {
    throw perigeeError('OPTION_INVALID', {
      option: '--shape',
      value: options.shape,
      expected: 'left out when a model is named',
    });
  }
  const gguf = syntheticModel({ shape: options.shape, mix: options.mix, moeLayers: options.layers });
  return { gguf, config: modelConfig(gguf, { yarnBetaFast: options.yarnBetaFast }) };
}

function withStages(speeds: Speeds, profiled: Speeds): Speeds {
  const join = (name: keyof Speeds): Measured => ({ ...speeds[name], stages: profiled[name].stages });
  return { prefill: join('prefill'), decode: join('decode') };
}

/** Rounds of each measurement, of which the median counts: one core taken away for a moment must not decide. */
const rounds = 3;
/** Steps before measuring, after which V8 has compiled the core's hot loops with its optimizing compiler. */
const warmUpTokens = 64;

async function measure(runtime: Runtime, { prefill, decode }: BenchOptions): Promise<Speeds> {
  const { vocabulary, context } = runtime.config;
  const tokens = Int32Array.from(
    { length: Math.min(Math.max(prefill, decode), context) },
    (_, index) => (index * 7919 + 13) % vocabulary,
  );
  const { batchTokens } = runtime.limits;
  await runTokens(runtime, tokens.subarray(0, warmUpTokens), batchTokens);
  await runTokens(runtime, tokens.subarray(0, warmUpTokens / 4), 1);
  const timed = async (count: number, chunk: number): Promise<Measured> => {
    const speeds: Measured[] = [];
    for (let round = 0; round < rounds; round++) {
      const before = runtime.stageTimes();
      const started = performance.now();
      await runTokens(runtime, tokens.subarray(0, count), chunk);
      const milliseconds = performance.now() - started;
      const stages = runtime.stageTimes().map(({ stage, milliseconds: total }, index) => ({
        stage,
        milliseconds: total - (before[index]?.milliseconds ?? 0),
      }));
      speeds.push({ tokens: Math.min(count, tokens.length), milliseconds, stages });
    }
    return speeds.sort((a, b) => a.milliseconds - b.milliseconds)[rounds >> 1] as Measured;
  };
  return { prefill: await timed(prefill, batchTokens), decode: await timed(decode, 1) };
}

/** Runs `tokens` from position 0 in steps of at most `chunk`, each asking for its last token's logits. */
async function runTokens(runtime: Runtime, tokens: Int32Array, chunk: number): Promise<void> {
  const pages = Int32Array.from({ length: Math.ceil(tokens.length / pageTokens) }, (_, page) => page);
  for (let begin = 0; begin < tokens.length; begin += chunk) {
    const part = tokens.slice(begin, begin + chunk);
    await runtime.step({
      tokens: part,
      positions: part.map((_, index) => begin + index),
      sequences: new Int32Array(part.length),
      pageTables: [pages],
      outputs: Int32Array.of(part.length - 1),
    });
  }
}
