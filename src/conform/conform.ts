/** Runs one prompt on several backends, one after the other, and compares each with the first. */
import type { ModelConfig } from '../model/config.ts';
import type { Runtime } from '../runtime/runtime.ts';
import { bandFor } from './bands.ts';
import { Comparison, type ComparisonResult, type RouterBias } from './compare.ts';
import { Recording } from './recording.ts';
import { traceOf } from './trace.ts';

/** A backend to come. `load` gives a runtime with taps; conform closes it. */
export interface Contestant {
  /** As the user named it: "wasm", "native:avx2". */
  readonly name: string;
  load(): Promise<Runtime>;
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
  readonly band: string;
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
  const recording = await Recording.create();
  try {
    const { reference, config } = await withRuntime(first!, async (runtime) => {
      for await (const part of traceOf(runtime, tokens)) await recording.append(part);
      return { reference: configurationOf(first!, runtime), config: runtime.config };
    });
    const candidates: CandidateResult[] = [];
    for (const contestant of others) {
      recording.rewind();
      const result = await withRuntime(contestant, async (runtime) => {
        const band = bandFor(reference.backend, runtime.backend);
        const comparison = new Comparison(config, band, bias);
        for await (const part of traceOf(runtime, tokens)) comparison.add(part, await recording.next(part));
        const compared = comparison.result();
        return {
          ...configurationOf(contestant, runtime),
          band: band.name,
          agrees: compared.first === null,
          ...compared,
        };
      });
      candidates.push(result);
    }
    return { config, tokens, reference, candidates };
  } finally {
    await recording.close();
  }
}

async function withRuntime<T>({ load }: Contestant, use: (runtime: Runtime) => Promise<T>): Promise<T> {
  const runtime = await load();
  try {
    return await use(runtime);
  } finally {
    await runtime.close();
  }
}

function configurationOf({ name }: Contestant, { backend, isa, threads }: Runtime): Configuration {
  return { name, backend, isa, threads };
}
