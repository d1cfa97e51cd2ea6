/**
 * The model in float64, written to be read beside the paper: naive attention with expanded keys and values, one token at a
 * time, one expert at a time. It shares no code and no algorithm with the engine. Only for float32 models.
 */
import { readFileSync } from 'node:fs';
import type { GgufModel } from '../../src/gguf/types.ts';
import type { ModelConfig } from '../../src/model/config.ts';

type Vector = Float64Array<ArrayBuffer>;
/** Matrix rows: y = W x. */
type Matrix = Float32Array[];

/** The transformers library's, whatever the checkpoint's eps is. */
const latentEps = 1e-6;

const sum = (values: Iterable<number>): number => {
  let total = 0;
  for (const value of values) total += value;
  return total;
};
const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += (a[i] as number) * (b[i] as number);
  return total;
};
const multiply = (w: Matrix, x: ArrayLike<number>): Vector => Float64Array.from(w, (row) => dot(row, x));
const add = (a: Vector, b: Vector): Vector => a.map((value, i) => value + (b[i] as number));
const silu = (x: number): number => x / (1 + Math.exp(-x));
const softmax = (x: readonly number[]): number[] => {
  const most = Math.max(...x);
  const e = x.map((value) => Math.exp(value - most));
  const total = sum(e);
  return e.map((value) => value / total);
};
const norm = (x: Vector, weight: ArrayLike<number>, eps: number): Vector => {
  const scale = 1 / Math.sqrt(dot(x, x) / x.length + eps);
  return x.map((value, i) => value * scale * (weight[i] as number));
};

/** Inverse frequencies of the rope pairs, YaRN included. */
function frequencies(c: ModelConfig): number[] {
  const plain = Array.from({ length: c.ropeDim / 2 }, (_, i) => c.ropeBase ** ((-2 * i) / c.ropeDim));
  if (!c.yarn) return plain;
  const { factor, originalContext, betaFast, betaSlow } = c.yarn;
  const turns = (r: number) => (c.ropeDim * Math.log(originalContext / (2 * Math.PI * r))) / (2 * Math.log(c.ropeBase));
  const low = Math.max(Math.floor(turns(betaFast)), 0);
  let high = Math.min(Math.ceil(turns(betaSlow)), c.ropeDim - 1);
  if (low === high) high += 0.001;
  return plain.map((f, i) => {
    const ramp = Math.min(1, Math.max(0, (i - low) / (high - low)));
    return (f / factor) * ramp + f * (1 - ramp);
  });
}

export class Oracle {
  readonly #gguf: GgufModel;
  readonly #config: ModelConfig;
  readonly #files: Buffer[];
  readonly #frequencies: number[];
  readonly #cache = new Map<string, Matrix>();

  constructor(gguf: GgufModel, config: ModelConfig) {
    this.#gguf = gguf;
    this.#config = config;
    this.#files = gguf.files.map(({ path }) => readFileSync(path));
    this.#frequencies = frequencies(config);
  }

  /** Logits of every position of one prompt. */
  logits(tokens: readonly number[]): Vector[] {
    const c = this.#config;
    const embedding = this.#matrix('token_embd.weight');
    let stream = tokens.map((token) => Float64Array.from(embedding[token] as Float32Array));
    for (let layer = 0; layer < c.layers; layer++) {
      const at = (name: string) => `blk.${layer}.${name}`;
      const normed = stream.map((x) => norm(x, this.#vector(at('attn_norm.weight')), c.rmsEps));
      const attended = this.#attention(normed, at);
      stream = stream.map((x, t) => add(x, attended[t] as Vector));
      stream = stream.map((x) => {
        const h = norm(x, this.#vector(at('ffn_norm.weight')), c.rmsEps);
        return add(x, layer < c.denseLayers ? this.#swiglu(h, at, '') : this.#experts(h, at));
      });
    }
    const head = this.#matrix(this.#gguf.tensors.has('output.weight') ? 'output.weight' : 'token_embd.weight');
    return stream.map((x) => multiply(head, norm(x, this.#vector('output_norm.weight'), c.rmsEps)));
  }

  #attention(inputs: Vector[], at: (name: string) => string): Vector[] {
    const c = this.#config;
    const queryDim = c.nopeDim + c.ropeDim;
    const m = c.yarn?.attentionFactor ?? 1;
    const scale = (m * m) / Math.sqrt(queryDim);
    const queries = inputs.map((h, t) => this.#rotateHeads(this.#query(h, at), queryDim, t));
    const latents = inputs.map((h, t) => {
      const both = multiply(this.#matrix(at('attn_kv_a_mqa.weight')), h);
      const latent = norm(both.subarray(0, c.kvRank), this.#vector(at('attn_kv_a_norm.weight')), latentEps);
      return { latent, key: this.#rotate(both.subarray(c.kvRank), t) };
    });
    const heads = Array.from({ length: c.heads }, (_, head) => this.#headMatrices(at, head));
    const expanded = latents.map(({ latent }) =>
      heads.map(({ keys, values }) => ({ key: multiply(keys, latent), value: multiply(values, latent) })),
    );
    return inputs.map((_, t) => {
      const out = new Float64Array(c.heads * c.valueDim);
      for (let head = 0; head < c.heads; head++) {
        const query = (queries[t] as Vector).subarray(head * queryDim, (head + 1) * queryDim);
        const past = expanded.slice(0, t + 1).map((position) => position[head] as { key: Vector; value: Vector });
        const scores = past.map(
          ({ key }, s) =>
            scale *
            (dot(query.subarray(0, c.nopeDim), key) + dot(query.subarray(c.nopeDim), latents[s]?.key as Vector)),
        );
        softmax(scores).forEach((p, s) => {
          const value = past[s]?.value as Vector;
          for (let i = 0; i < c.valueDim; i++)
            out[head * c.valueDim + i] = (out[head * c.valueDim + i] as number) + p * (value[i] as number);
        });
      }
      return multiply(this.#matrix(at('attn_output.weight')), out);
    });
  }

  #query(h: Vector, at: (name: string) => string): Vector {
    const c = this.#config;
    if (c.qRank === 0) return multiply(this.#matrix(at('attn_q.weight')), h);
    const latent = multiply(this.#matrix(at('attn_q_a.weight')), h);
    return multiply(
      this.#matrix(at('attn_q_b.weight')),
      norm(latent, this.#vector(at('attn_q_a_norm.weight')), latentEps),
    );
  }

  /** Key and value matrices of one head, rows over the latent, from either form of file. */
  #headMatrices(at: (name: string) => string, head: number): { keys: Matrix; values: Matrix } {
    const { nopeDim, valueDim, kvRank } = this.#config;
    if (this.#gguf.tensors.has(at('attn_kv_b.weight'))) {
      const rows = this.#matrix(at('attn_kv_b.weight')).slice(
        head * (nopeDim + valueDim),
        (head + 1) * (nopeDim + valueDim),
      );
      return { keys: rows.slice(0, nopeDim), values: rows.slice(nopeDim) };
    }
    const transposed = this.#matrix(at('attn_k_b.weight')).slice(head * kvRank, (head + 1) * kvRank);
    const keys = Array.from({ length: nopeDim }, (_, d) => Float32Array.from(transposed, (row) => row[d] as number));
    return { keys, values: this.#matrix(at('attn_v_b.weight')).slice(head * valueDim, (head + 1) * valueDim) };
  }

  #rotateHeads(query: Vector, queryDim: number, position: number): Vector {
    const out = query.slice();
    for (let head = 0; head < this.#config.heads; head++) {
      const from = head * queryDim + this.#config.nopeDim;
      out.set(this.#rotate(query.subarray(from, from + this.#config.ropeDim), position), from);
    }
    return out;
  }

  /** Interleaved pairs (2i, 2i + 1) turned by position * frequency. */
  #rotate(x: Vector, position: number): Vector {
    const out = x.slice();
    const magnitude = this.#config.yarn?.magnitude ?? 1;
    this.#frequencies.forEach((frequency, i) => {
      const [cosine, sine] = [Math.cos(position * frequency) * magnitude, Math.sin(position * frequency) * magnitude];
      const [a, b] = [x[2 * i] as number, x[2 * i + 1] as number];
      out[2 * i] = a * cosine - b * sine;
      out[2 * i + 1] = a * sine + b * cosine;
    });
    return out;
  }

  #swiglu(h: Vector, at: (name: string) => string, suffix: '' | '_shexp'): Vector {
    const [gate, up, down] = ['gate', 'up', 'down'].map((name) => this.#matrix(at(`ffn_${name}${suffix}.weight`))) as [
      Matrix,
      Matrix,
      Matrix,
    ];
    const ups = multiply(up, h);
    return multiply(
      down,
      multiply(gate, h).map((g, i) => silu(g) * (ups[i] as number)),
    );
  }

  #experts(h: Vector, at: (name: string) => string): Vector {
    const c = this.#config;
    let out = new Float64Array(c.hidden);
    for (const { expert, weight } of this.#route(h, at)) {
      const part = (name: string, rows: number) =>
        this.#matrix(at(`ffn_${name}_exps.weight`)).slice(expert * rows, (expert + 1) * rows);
      const ups = multiply(part('up', c.expertWidth), h);
      const mid = multiply(part('gate', c.expertWidth), h).map((g, i) => silu(g) * (ups[i] as number));
      out = add(
        out,
        multiply(part('down', c.hidden), mid).map((value) => value * weight),
      );
    }
    return c.sharedWidth > 0 ? add(out, this.#swiglu(h, at, '_shexp')) : out;
  }

  #route(h: Vector, at: (name: string) => string): { expert: number; weight: number }[] {
    const c = this.#config;
    const logits = [...multiply(this.#matrix(at('ffn_gate_inp.weight')), h)];
    const scores = c.gating === 'sigmoid' ? logits.map((x) => 1 / (1 + Math.exp(-x))) : softmax(logits);
    const bias = this.#gguf.tensors.has(at('exp_probs_b.bias'))
      ? this.#vector(at('exp_probs_b.bias'))
      : new Float32Array(c.experts);
    let candidates = scores.map((score, expert) => ({ expert, score, key: score + (bias[expert] as number) }));
    const best = <T extends { key: number }>(items: T[], count: number) =>
      items.toSorted((a, b) => b.key - a.key).slice(0, count);
    if (c.expertGroups > 1) {
      const size = c.experts / c.expertGroups;
      const groups = Array.from({ length: c.expertGroups }, (_, group) => {
        const top = best(candidates.slice(group * size, (group + 1) * size), c.gating === 'sigmoid' ? 2 : 1);
        return { group, key: sum(top.map(({ key }) => key)) };
      });
      const kept = new Set(best(groups, c.expertGroupsUsed).map(({ group }) => group));
      candidates = candidates.filter(({ expert }) => kept.has(Math.floor(expert / size)));
    }
    const chosen = best(candidates, c.expertsUsed);
    const total = c.normalizeWeights ? sum(chosen.map(({ score }) => score)) : 1;
    return chosen.map(({ expert, score }) => ({ expert, weight: (score / total) * c.weightScale }));
  }

  #vector(name: string): Float32Array {
    return this.#matrix(name)[0] as Float32Array;
  }

  /** All rows of a float32 tensor; further dimensions follow one another. */
  #matrix(name: string): Matrix {
    const known = this.#cache.get(name);
    if (known) return known;
    const tensor = this.#gguf.tensors.get(name);
    if (tensor?.type !== 'F32') throw new Error(`the oracle needs ${name} as F32, found ${tensor?.type ?? 'nothing'}`);
    const file = this.#files[tensor.file] as Buffer;
    const values = new Float32Array(
      file.buffer.slice(file.byteOffset + tensor.offset, file.byteOffset + tensor.offset + tensor.bytes),
    );
    const columns = tensor.shape[0] as number;
    const rows = Array.from({ length: values.length / columns }, (_, row) =>
      values.subarray(row * columns, (row + 1) * columns),
    );
    this.#cache.set(name, rows);
    return rows;
  }
}
