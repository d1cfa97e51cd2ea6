/** What `perigee bench` says: speeds, where the time goes, and the share of what the hardware could do. */
import type { ModelConfig } from '../model/config.ts';
import type { SyntheticShape } from '../model/synthetic.ts';
import type { WeightMix } from '../model/weight-mix.ts';
import type { Plan } from '../select/select.ts';
import type { MachineLimits } from './machine-limits.ts';
import { note, print, printJson } from './output.ts';
import { kimiK2ActiveBytes, type Measured, projectTimes, type TokenTimes } from './projection.ts';
import { rooflineMilliseconds, type TokenBytes } from './roofline.ts';

/** What was asked for, as far as it shapes the report. */
export interface Asked {
  readonly shape?: SyntheticShape;
  readonly mix: WeightMix;
  readonly json?: boolean;
}

export interface Speeds {
  readonly prefill: Measured;
  readonly decode: Measured;
}

export interface BenchResult {
  readonly config: ModelConfig;
  readonly plan: Plan;
  /** What the runtime measured and decided at start. */
  readonly notes: readonly string[];
  readonly speeds: Speeds;
  /** How often each speed was measured; they are medians. */
  readonly rounds: number;
  readonly bytes: TokenBytes;
  /** Null where no ranks take part. */
  readonly machine: MachineLimits | null;
  /** Null where no device takes part, or its rate cannot be measured. */
  readonly deviceGbPerSecond: number | null;
  /** What was measured, by its maker's name; null where no device takes part. */
  readonly deviceName: string | null;
}

/** Milliseconds a token spends in each stage. */
function shares({ stages, tokens }: Measured): Record<string, number> {
  return Object.fromEntries(
    stages.map(({ stage, milliseconds }) => [stage, Number((milliseconds / tokens).toPrecision(3))]),
  );
}

/** In microseconds where all stages together take less than one millisecond. */
function stageLine(name: string, speed: Measured, plan: Plan): string {
  const all = Object.entries(shares(speed));
  const short = all.reduce((sum, [, milliseconds]) => sum + milliseconds, 0) < 1;
  const shown = (milliseconds: number) => (short ? (1000 * milliseconds).toFixed(1) : milliseconds.toFixed(2));
  // A device waits for its ranks' experts and for nothing else.
  const named = (stage: string) => (stage === 'wait' && plan.backend === 'hybrid' ? "wait for ranks' experts" : stage);
  const parts = all.map(([stage, milliseconds]) => `${named(stage)} ${shown(milliseconds)}`);
  return `${name} ${short ? 'us' : 'ms'}/token by stage  ${parts.join(', ')}`;
}

const perSecond = ({ tokens, milliseconds }: Measured) => (1000 * tokens) / milliseconds;
const rounded = (value: number) => Number(value.toPrecision(4));
const orNull = (value: number | null | undefined) => (value === null || value === undefined ? null : rounded(value));

/** Prints the result, or with --json one object. */
export function reportBench(asked: Asked, result: BenchResult): void {
  const { speeds, bytes, machine, deviceGbPerSecond, plan } = result;
  const weightRate = (perSecond(speeds.decode) * (bytes.device + bytes.ranks)) / 1e9;
  const rates = { device: deviceGbPerSecond, ranks: machine?.readGbPerSecond ?? null };
  const least = rooflineMilliseconds(bytes, rates);
  const share = least === null ? null : (least * perSecond(speeds.decode)) / 1000;
  const projection = asked.shape === 'k2' ? projectKimiK2(result, asked) : null;
  if (asked.json) printJson(jsonOf(result, { weightRate, share, projection }));
  else printReport(result, { weightRate, share, projection });
  if (plan.devices !== null && deviceGbPerSecond === null) {
    note("the share of the GPU's roofline is left out: device memory had no room to be measured");
  }
}

interface Derived {
  readonly weightRate: number;
  /** Of the least time a token can take, in the time it took. */
  readonly share: number | null;
  readonly projection: Projection | null;
}

function jsonOf(result: BenchResult, { weightRate, share, projection }: Derived): unknown {
  const { config, plan, speeds, bytes, machine, deviceGbPerSecond, deviceName } = result;
  const { prefill, decode } = speeds;
  const { backend, isa, threads } = plan;
  return {
    model: config.name,
    backend,
    isa,
    threads,
    prefill: { tokens: prefill.tokens, tokens_per_second: rounded(perSecond(prefill)), stages: shares(prefill) },
    decode: {
      tokens: decode.tokens,
      tokens_per_second: rounded(perSecond(decode)),
      weight_gb_per_second: rounded(weightRate),
      roofline_share: orNull(share),
      stages: shares(decode),
    },
    machine: { read_gb_per_second: orNull(machine?.readGbPerSecond), int8_gops: orNull(machine?.int8Gops) },
    ...(plan.devices !== null && {
      device: {
        name: deviceName,
        gb_per_second: orNull(deviceGbPerSecond),
        gb_per_token: rounded(bytes.device / 1e9),
        ranks_gb_per_token: rounded(bytes.ranks / 1e9),
        ...plan.devices,
      },
    }),
    ...(projection !== null && { kimi_k2: projection.json }),
  };
}

function printReport(result: BenchResult, { weightRate, share, projection }: Derived): void {
  const { config, plan, notes, speeds, rounds, bytes, machine, deviceGbPerSecond, deviceName } = result;
  const { prefill, decode } = speeds;
  const { backend, isa, threads } = plan;
  const ranks = plan.ranks === null ? '' : `, ${threads} ranks`;
  note(`${config.name} on ${backend} ${isa}${ranks}; medians of ${rounds} rounds`);
  if (plan.devices !== null) note(plan.placement);
  for (const line of notes) note(line);
  const limit = plan.devices === null ? 'read bandwidth' : 'the roofline';
  const percent = share === null ? '' : `, ${(100 * share).toFixed(0)} % of ${limit}`;
  print(`prefill  ${prefill.tokens} tokens  ${perSecond(prefill).toFixed(1)} tokens/s`);
  print(
    `decode   ${decode.tokens} tokens  ${perSecond(decode).toFixed(1)} tokens/s  ${weightRate.toFixed(1)} GB/s of weights${percent}`,
  );
  for (const [name, speed] of Object.entries({ prefill, decode })) print(stageLine(name, speed, plan));
  if (plan.devices !== null) {
    const rate = deviceGbPerSecond === null ? '' : `, ${deviceGbPerSecond.toFixed(0)} GB/s of memory`;
    const elsewhere = plan.ranks === null ? '' : `, ${(bytes.ranks / 1e9).toFixed(2)} GB in the ranks`;
    print(`device   ${deviceName}${rate}; a token reads ${(bytes.device / 1e9).toFixed(2)} GB there${elsewhere}`);
  }
  if (machine !== null) {
    print(
      `machine  ${machine.readGbPerSecond.toFixed(1)} GB/s read, ${machine.int8Gops.toFixed(0)} Gop/s of int8 dots, on ${threads} threads`,
    );
  }
  for (const line of projection?.lines ?? []) print(line);
}

interface Projection {
  readonly lines: readonly string[];
  readonly json: Readonly<Record<string, unknown>>;
}

/** The whole Kimi K2 on this machine, if its memory held it; null where no MoE layer was measured. */
function projectKimiK2({ config, speeds, plan }: BenchResult, { mix }: Asked): Projection | null {
  const project = (speed: Measured) => projectTimes(plan.devices === null ? speed : waitingForRanks(speed), config);
  const times = { prefill: project(speeds.prefill), decode: project(speeds.decode) };
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

/** A device waits for its ranks' experts and for nothing else: that time belongs to the MoE layers. */
function waitingForRanks(speed: Measured): Measured {
  const stages = speed.stages.map(({ stage, milliseconds }) => ({
    stage: stage === 'wait' ? 'experts-out' : stage,
    milliseconds,
  }));
  return { ...speed, stages };
}
