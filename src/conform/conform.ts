/** Runs one prompt on several backends, one after the other, and compares each with the first. */
import { perigeeError } from '../errors.ts';
import type { ModelConfig } from '../model/config.ts';
import type { Runtime } from '../runtime/runtime.ts';
import { type Band, bandFor, onDevice } from './bands.ts';
import { Comparison, type ComparisonResult, type RouterBias } from './compare.ts';
import { type DivergenceResult, divergences, judgeDivergence } from './divergence.ts';
import { Recording } from './recording.ts';
import { logitsOf, traceOf } from './trace.ts';

/** A backend to come. */
export interface Contestant {
  /** As the user named it: "wasm", "native:avx2". */
  readonly name: string;
  /** Gives a runtime, which conform closes; `exact`: its activations are floats rounded to bf16, whatever else is wished. */
  load(wishes: { readonly taps?: boolean; readonly exact?: 'bf16' }): Promise<Runtime>;
}

/** How a backend ran. */
export interface Configuration {
  readonly name: string;
  readonly backend: Runtime['backend'];
  readonly isa: string;
  readonly threads: number;
}

export interface CandidateResult extends Configuration, ComparisonResult {
  /** The band it is held to. */
  readonly band: Band;
  /** Of the logits of a run on the candidate's own values. */
  readonly divergence: DivergenceResult;
  readonly agrees: boolean;
}

export interface ConformResult {
  readonly config: ModelConfig;
  readonly tokens: readonly number[];
  readonly reference: Configuration;
  readonly candidates: readonly CandidateResult[];
}

/** Runs `tokens` on every contestant. Only one runtime exists at a time: the reference's trace waits in a file. */
export async function conform(
  [first, ...others]: readonly Contestant[],
  tokens: readonly number[],
  bias: RouterBias = () => null,
): Promise<ConformResult> {
  const { config, reference, recording } = await record(first!, tokens);
  try {
    let rounding: Promise<readonly number[]> | null = null;
    const measureRounding = () => {
      rounding ??= ownDivergences(first!.load({ exact: 'bf16' }), recording, tokens);
      return rounding;
    };
    const candidates: CandidateResult[] = [];
    for (const contestant of others) {
      const compared = await withRuntime(contestant.load({ taps: true }), async (runtime) => {
        const band = bandFor(runtime.backend);
        const comparison = new Comparison(config, band.limits, bias);
        const given = band.limits === null ? undefined : recording.residuals.bind(recording);
        for await (const part of traceOf(runtime, tokens, given)) comparison.add(part, await recording.read(part));
        return { ...configurationOf(contestant, runtime), band, ...comparison.result() };
      });
      const { limits } = compared.band;
      const own = limits ? await ownDivergences(contestant.load({}), recording, tokens) : compared.divergences;
      const divergence = await judgeDivergence(own, limits, measureRounding);
      const { mean, allowed } = divergence;
      const agrees = compared.first === null && (allowed === null || mean <= allowed);
      candidates.push({ ...compared, divergence, agrees });
    }
    return { config, tokens, reference, candidates };
  } finally {
    await recording.close();
  }
}

async function record(contestant: Contestant, tokens: readonly number[]) {
  return await withRuntime(contestant.load({ taps: true }), async (runtime) => {
    const { config } = runtime;
    const reference = configurationOf(contestant, runtime);
    assertReference(reference);
    const recording = await Recording.create(config);
    try {
      for await (const part of traceOf(runtime, tokens)) await recording.append(part);
    } catch (error) {
      await recording.close();
      throw error;
    }
    return { config, reference, recording };
  });
}

/** Stages on a GPU are judged by equal inputs, which only a GPU takes: it cannot be what others are measured by. */
export function assertReference({ name, backend }: Pick<Configuration, 'name' | 'backend'>): void {
  if (!onDevice(backend)) return;
  const expected = 'a CPU backend first, for that is the reference: native or wasm, with a kernel set if you like';
  throw perigeeError('OPTION_INVALID', { option: '--backends', value: `${name} first`, expected });
}

/** The divergences of a run on its own values, without taps: as a user would have it. */
async function ownDivergences(
  loading: Promise<Runtime>,
  recording: Recording,
  tokens: readonly number[],
): Promise<number[]> {
  return await withRuntime(loading, async (runtime) => {
    const found: number[] = [];
    for await (const part of logitsOf(runtime, tokens)) {
      found.push(...divergences(await recording.read(part), part.values, runtime.config.vocabulary));
    }
    return found;
  });
}

async function withRuntime<T>(loading: Promise<Runtime>, use: (runtime: Runtime) => Promise<T>): Promise<T> {
  const runtime = await loading;
  try {
    return await use(runtime);
  } finally {
    await runtime.close();
  }
}

function configurationOf({ name }: Contestant, { backend, isa, threads }: Runtime): Configuration {
  return { name, backend, isa, threads };
}
