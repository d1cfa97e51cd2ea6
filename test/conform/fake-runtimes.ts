/** Runtimes whose taps are a formula, so that a test knows every value and can plant a wrong one. */

import type { Contestant } from '../../src/conform/conform.ts';
import type { ModelConfig } from '../../src/model/config.ts';
import type { Runtime, StepBatch } from '../../src/runtime/runtime.ts';
import { type TapName, tapNames } from '../../src/runtime/taps.ts';
import { FakeRuntime } from '../scheduler/fake-runtime.ts';

export interface Plant {
  readonly tap: TapName | 'logits';
  readonly layer: number;
  readonly token: number;
  readonly channel: number;
  /** From the right value to the wrong one. */
  readonly change: (value: number) => number;
}

/** Two dense and two MoE layers. */
export const config: ModelConfig = {
  ...new FakeRuntime({ next: () => 0 }).config,
  name: 'formula',
  layers: 4,
  denseLayers: 2,
  hidden: 12,
  vocabulary: 9,
  context: 256,
  heads: 2,
  kvRank: 5,
  ropeDim: 2,
  valueDim: 4,
  experts: 6,
  expertsUsed: 2,
};

/** A runtime that computes sines of where a value stands, with `plants` in place of some. */
export class FormulaRuntime implements Runtime {
  readonly backend: Runtime['backend'];
  readonly isa = 'formula';
  readonly threads = 1;
  readonly weightBytes = 1;
  readonly activeWeightBytes = 1;
  readonly config = config;
  readonly limits = { batchTokens: 16, batchOutputs: 16, batchSequences: 1, pages: 4, context: 256 };
  closed = false;
  readonly #plants: readonly Plant[];
  #positions: Int32Array = new Int32Array();

  constructor(plants: readonly Plant[], backend: Runtime['backend'] = 'wasm') {
    this.#plants = plants;
    this.backend = backend;
  }

  async step({ positions, outputs }: StepBatch): Promise<Float32Array> {
    if (this.closed) throw new Error('closed');
    this.#positions = positions;
    if (outputs.length !== positions.length) throw new Error('logits of every token are wanted');
    return Float32Array.from(this.#values('logits', config.layers, config.vocabulary));
  }

  tap(name: TapName, layer: number): Float32Array | Int32Array {
    if (name === 'router-choices') return Int32Array.from(this.#values(name, layer, config.expertsUsed));
    const width = { latent: 7, attention: 8, 'router-scores': 6 }[name as string] ?? config.hidden;
    return Float32Array.from(this.#values(name, layer, width));
  }

  #values(tap: Plant['tap'], layer: number, width: number): number[] {
    return [...this.#positions].flatMap((token) =>
      Array.from({ length: width }, (_, channel) => {
        const value =
          tap === 'router-choices'
            ? (token + channel) % config.experts
            : Math.fround(Math.sin(1 + token * 31 + channel * 7 + layer * 3 + tapNames.indexOf(tap as TapName)));
        const plant = this.#plants.find(
          (each) => each.tap === tap && each.layer === layer && each.token === token && each.channel === channel,
        );
        return plant ? plant.change(value) : value;
      }),
    );
  }

  stageTimes(): [] {
    return [];
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}

/** A contestant that runs the formula, wrong in `plants`. */
export function formula(name: string, ...plants: Plant[]): Contestant {
  return { name, load: async () => new FormulaRuntime(plants) };
}

/** The same as a GPU's. */
export function deviceFormula(name: string, ...plants: Plant[]): Contestant {
  return { name, load: async () => new FormulaRuntime(plants, 'cuda') };
}
