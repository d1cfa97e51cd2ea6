import { Command, Option } from 'commander';
import { perigeeError } from '../errors.ts';
import { modelConfig } from '../model/gguf.ts';
import { type SyntheticShape, syntheticModel, syntheticShapes } from '../model/synthetic.ts';
import { type WeightMix, weightMixes } from '../model/weight-mix.ts';
import { pageTokens, type Runtime } from '../runtime/runtime.ts';
import { loadModel, type OpenedModel, openModel } from './load-engine.ts';
import { type MachineLimits, measureMachine } from './machine-limits.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import { type EngineOptions, integer, option, withConfigFile, withEngineOptions, withJsonOption } from './options.ts';
import { note, print, printJson, showProgress } from './output.ts';
import { kimiK2ActiveBytes, type Measured, projectTimes, type TokenTimes } from './projection.ts';

interface BenchOptions extends EngineOptions {
  readonly shape?: SyntheticShape;
  readonly layers?: number;
  readonly mix: WeightMix;
  readonly prefill: number;
  readonly decode: number;
  readonly json?: boolean;
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
  const progress = showProgress('loading');
  const context = Math.max(options.prefill, options.decode);
  const { runtime, plan } = await loadModel(model, { ...options, context }, ({ bytesRead, bytesTotal }) =>
    progress.update(bytesRead, bytesTotal),
  ).finally(() => progress.stop());
  let speeds: Speeds;
  try {
    speeds = await measure(runtime, options);
  } finally {
    await runtime.close();
  }
  // After the model is gone: measuring takes memory and all cores.
  const machine = await measureMachine(plan);
  report(runtime, speeds, machine, options);
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

interface Speeds {
  readonly prefill: Measured;
  readonly decode: Measured;
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

/** Milliseconds a token spends in each stage. */
function shares({ stages, tokens }: Measured): Record<string, number> {
  return Object.fromEntries(
    stages.map(({ stage, milliseconds }) => [stage, Number((milliseconds / tokens).toPrecision(3))]),
  );
}

function stageLine(name: string, speed: Measured): string {
  const parts = Object.entries(shares(speed)).map(([stage, milliseconds]) => `${stage} ${milliseconds.toFixed(2)}`);
  return `${name} ms/token by stage  ${parts.join(', ')}`;
}

const perSecond = ({ tokens, milliseconds }: Measured) => (1000 * tokens) / milliseconds;
const rounded = (value: number) => Number(value.toPrecision(4));

function report(runtime: Runtime, speeds: Speeds, machine: MachineLimits, options: BenchOptions): void {
  const { prefill, decode } = speeds;
  const weightRate = (perSecond(decode) * runtime.activeWeightBytes) / 1e9;
  const projection = options.shape === 'k2' ? projectKimiK2(runtime, speeds, options.mix) : null;
  const { backend, isa, threads, config } = runtime;
  if (options.json) {
    printJson({
      model: config.name,
      backend,
      isa,
      threads,
      prefill: { tokens: prefill.tokens, tokens_per_second: rounded(perSecond(prefill)), stages: shares(prefill) },
      decode: {
        tokens: decode.tokens,
        tokens_per_second: rounded(perSecond(decode)),
        weight_gb_per_second: rounded(weightRate),
        stages: shares(decode),
      },
      machine: { read_gb_per_second: rounded(machine.readGbPerSecond), int8_gops: rounded(machine.int8Gops) },
      ...(projection !== null && { kimi_k2: projection.json }),
    });
    return;
  }
  const share = ((100 * weightRate) / machine.readGbPerSecond).toFixed(0);
  note(`${config.name} on ${backend} ${isa}, ${threads} ranks; medians of ${rounds} rounds`);
  print(`prefill  ${prefill.tokens} tokens  ${perSecond(prefill).toFixed(1)} tokens/s`);
  print(
    `decode   ${decode.tokens} tokens  ${perSecond(decode).toFixed(1)} tokens/s  ${weightRate.toFixed(1)} GB/s of weights, ${share} % of read bandwidth`,
  );
  for (const [name, speed] of Object.entries({ prefill, decode })) print(stageLine(name, speed));
  print(
    `machine  ${machine.readGbPerSecond.toFixed(1)} GB/s read, ${machine.int8Gops.toFixed(0)} Gop/s of int8 dots, on ${threads} threads`,
  );
  for (const line of projection?.lines ?? []) print(line);
}

interface Projection {
  readonly lines: readonly string[];
  readonly json: Readonly<Record<string, unknown>>;
}

/** The whole Kimi K2 on this machine, if its memory held it; null where no MoE layer was measured. */
function projectKimiK2({ config }: Runtime, { prefill, decode }: Speeds, mix: WeightMix): Projection | null {
  const times = { prefill: projectTimes(prefill, config), decode: projectTimes(decode, config) };
  if (times.prefill === null || times.decode === null) return null;
  const weightRate = kimiK2ActiveBytes(mix) / times.decode.total / 1e6;
  const line = (name: string, { moeLayer, denseLayer, head, total }: TokenTimes) =>
    `${name} ms/token  MoE layer ${moeLayer.toFixed(2)}, dense layer ${denseLayer.toFixed(2)}, head ${head.toFixed(2)}: 60 + 1 layers make ${(1000 / total).toFixed(2)} tokens/s`;
  const json = ({ moeLayer, denseLayer, head, total }: TokenTimes) => ({
    ms_per_moe_layer: rounded(moeLayer),
    ms_per_dense_layer: rounded(denseLayer),
    ms_per_head: rounded(head),
    tokens_per_second: rounded(1000 / total),
  });
  return {
    lines: [
      `Kimi K2  projected from ${config.denseLayers} dense layer and ${config.layers - config.denseLayers} MoE, if memory held all 61`,
      line('prefill', times.prefill),
      `${line('decode', times.decode)}, ${weightRate.toFixed(1)} GB/s of weights`,
    ],
    json: {
      prefill: json(times.prefill),
      decode: { ...json(times.decode), weight_gb_per_second: rounded(weightRate) },
    },
  };
}
