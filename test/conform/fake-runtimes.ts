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

/**
 * A runtime that computes sines of where a value stands, with `plants` in place of some. What a plant adds to the first channel of
 * a residual goes on to that of every later tap of the token, unless residuals are given.
 */
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
  #residuals: Float32Array | undefined;

  constructor(plants: readonly Plant[], backend: Runtime['backend'] = 'wasm') {
    this.#plants = plants;
    this.backend = backend;
  }

  async step({ positions, outputs, residuals }: StepBatch): Promise<Float32Array> {
    if (this.closed) throw new Error('closed');
    this.#positions = positions;
    this.#residuals = residuals;
    if (outputs.length !== positions.length) throw new Error('logits of every token are wanted');
    return Float32Array.from(this.#values('logits', config.layers, config.vocabulary));
  }

  tap(name: TapName, layer: number): Float32Array | Int32Array {
    if (name === 'router-choices') return Int32Array.from(this.#values(name, layer, config.expertsUsed));
    const width = { latent: 7, attention: 8, 'router-scores': 6 }[name as string] ?? config.hidden;
    return Float32Array.from(this.#values(name, layer, width));
  }

  #values(tap: Plant['tap'], layer: number, width: number): number[] {
    return [...this.#positions].flatMap((token, row) => {
      const carried = tap === 'embedding' ? 0 : this.#carried(layer, token, row);
      return Array.from({ length: width }, (_, channel) => {
        const value =
          tap === 'router-choices'
            ? (token + channel) % config.experts
            : right(tap, layer, token, channel) + (channel === 0 ? carried : 0);
        const plant = this.#plants.find(
          (each) => each.tap === tap && each.layer === layer && each.token === token && each.channel === channel,
        );
        return plant ? plant.change(value) : value;
      });
    });
  }

  /** By how much the layer's input is off. */
  #carried(layer: number, token: number, row: number): number {
    const given = this.#residuals?.[(layer * this.#positions.length + row) * config.hidden];
    if (given !== undefined)
      return given - (layer === 0 ? right('embedding', 0, token, 0) : right('residual', layer - 1, token, 0));
    return this.#plants
      .filter(
        (plant) => plant.tap === 'residual' && plant.channel === 0 && plant.layer < layer && plant.token === token,
      )
      .reduce((sum, { change }) => sum + change(0), 0);
  }

  stageTimes(): [] {
    return [];
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}

function right(tap: Plant['tap'], layer: number, token: number, channel: number): number {
  return Math.fround(Math.sin(1 + token * 31 + channel * 7 + layer * 3 + tapNames.indexOf(tap as TapName)));
}

/** A contestant that runs the formula, wrong in `plants`. */
export function formula(name: string, ...plants: Plant[]): Contestant {
  return { name, load: async () => new FormulaRuntime(plants) };
}

/** The same as a GPU's. */
export function deviceFormula(name: string, ...plants: Plant[]): Contestant {
  return { name, load: async () => new FormulaRuntime(plants, 'cuda') };
}

/** A CPU backend to which activations in bf16 do what `plants` change. */
export function roundingFormula(name: string, ...plants: Plant[]): Contestant {
  return { name, load: async ({ exact }) => new FormulaRuntime(exact ? plants : []) };
}
