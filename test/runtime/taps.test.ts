/** Taps of the WebAssembly backend: what they hold, and that looking changes nothing. */
import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { loadRuntime } from '../../src/runtime/load.ts';
import type { Runtime } from '../../src/runtime/runtime.ts';
import { tapPoints } from '../../src/runtime/taps.ts';
import { bitsOf, promptLogits, relativeError, someTokens, syntheticTestModel } from './models.ts';

const open: Runtime[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((runtime) => runtime.close()));
});

const model = await syntheticTestModel({ shape: 'tiny', mix: 'f32' });
const tokens = someTokens(21, model.config.vocabulary);

/** The values of a float32 tensor, straight from the file. */
function matrix(name: string): Float32Array {
  const tensor = model.gguf.tensors.get(name)!;
  const file = readFileSync(model.gguf.files[tensor.file]!.path);
  return new Float32Array(file.buffer.slice(file.byteOffset + tensor.offset).slice(0, tensor.bytes));
}

async function load(options: { threads?: number; isa?: string; taps?: boolean } = {}): Promise<Runtime> {
  const runtime = await loadRuntime({ ...model, backend: 'wasm', threads: 2, taps: true, batchTokens: 32, ...options });
  open.push(runtime);
  return runtime;
}

describe('taps', () => {
  it('change no bit of the logits', async () => {
    const rows = await Promise.all([true, false].map(async (taps) => promptLogits(await load({ taps }), tokens)));
    expect(bitsOf(rows[0] as Float32Array[])).toBe(bitsOf(rows[1] as Float32Array[]));
  });

  it('exist at every point of the model and have the same bits for any number of ranks', async () => {
    const bits = [];
    for (const options of [{ threads: 1 }, { threads: 3 }, { threads: 5, isa: 'scalar' }]) {
      const runtime = await load(options);
      await promptLogits(runtime, tokens);
      const values = tapPoints(model.config).map(({ tap, layer, width }) => {
        const value = runtime.tap(tap, layer);
        expect(value.length).toBe(tokens.length * width);
        return new Float32Array(value.buffer);
      });
      bits.push(bitsOf(values));
    }
    expect(new Set(bits).size).toBe(1);
  });

  it('begin with the rows of the embedding table and end with what the logits are made of', async () => {
    const runtime = await load();
    const logits = await promptLogits(runtime, tokens);
    const { hidden, layers, rmsEps, vocabulary } = model.config;
    const table = matrix('token_embd.weight');
    const rows = tokens.flatMap((token) => [...table.slice(token * hidden, (token + 1) * hidden)]);
    expect([...runtime.tap('embedding', 0)]).toEqual(rows);
    const [norm, output] = [matrix('output_norm.weight'), matrix('output.weight')];
    const last = (runtime.tap('residual', layers - 1) as Float32Array).slice(-hidden);
    const scale = 1 / Math.sqrt(last.reduce((sum, x) => sum + x * x, 0) / hidden + rmsEps);
    const want = Array.from({ length: vocabulary }, (_, id) =>
      last.reduce((sum, x, i) => sum + x * scale * norm[i]! * output[id * hidden + i]!, 0),
    );
    expect(relativeError([logits.at(-1) as Float32Array], [want])).toBeLessThan(0.02); // quantized activations
  });

  it('hold scores between 0 and 1 and as many different experts as the model uses', async () => {
    const runtime = await load();
    await promptLogits(runtime, tokens);
    const { experts, expertsUsed, layers } = model.config;
    const choices = runtime.tap('router-choices', layers - 1);
    expect(choices).toBeInstanceOf(Int32Array);
    for (let t = 0; t < tokens.length; t++) {
      const chosen = choices.slice(t * expertsUsed, (t + 1) * expertsUsed);
      expect(new Set(chosen).size).toBe(expertsUsed);
      expect(chosen.every((expert) => expert >= 0 && expert < experts)).toBe(true);
    }
    const scores = runtime.tap('router-scores', layers - 1);
    expect(scores.every((score) => score > 0 && score < 1)).toBe(true);
  });

  it('are refused where a layer has none and where the runtime was loaded without', async () => {
    const runtime = await load();
    await promptLogits(runtime, tokens);
    expect(() => runtime.tap('embedding', 1)).toThrow('no tap embedding of layer 1');
    expect(() => runtime.tap('router-scores', 0)).toThrow('no tap');
    expect(() => runtime.tap('residual', model.config.layers)).toThrow('no tap');
    const without = await load({ taps: false });
    await promptLogits(without, tokens);
    expect(() => without.tap('residual', 0)).toThrow('no tap');
  });
});
