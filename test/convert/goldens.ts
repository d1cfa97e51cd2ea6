/** Golden token ids and logits of test/fixtures. */
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { readHeader } from '../../src/convert/safetensors.ts';

export interface Golden {
  /** Prompt and greedy answer. */
  readonly tokens: readonly number[];
  /** Tokens of the prompt; all of them for Moonlight, which has no answer. */
  readonly promptLength: number;
  readonly positions: readonly number[];
  /** One row of the vocabulary per position. */
  readonly logits: readonly Float32Array[];
}

export async function readGoldens(model: 'nano' | 'moonlight'): Promise<Golden[]> {
  const at = (file: string) => fileURLToPath(new URL(`../fixtures/${model}/${file}`, import.meta.url));
  const file = await readFile(at('golden.safetensors'));
  const tensors = new Map((await readHeader(at('golden.safetensors'))).map((tensor) => [tensor.name, tensor]));
  const buffer = (name: string) => {
    const tensor = tensors.get(name);
    if (tensor === undefined) throw new Error(`the ${model} goldens have no ${name}`);
    return Uint8Array.from(file.subarray(tensor.offset, tensor.offset + tensor.bytes)).buffer;
  };
  const integers = (name: string) => [...new Int32Array(buffer(name))];
  const rows = (prefix: string) => {
    const width = tensors.get(`${prefix}logits`)?.shape[1] ?? 0;
    const all = new Float32Array(buffer(`${prefix}logits`));
    return integers(`${prefix}positions`).map((_, i) => all.slice(i * width, (i + 1) * width));
  };
  if (model === 'moonlight') {
    const tokens = JSON.parse(await readFile(at('tokens.json'), 'utf8')) as number[];
    return [{ tokens, promptLength: tokens.length, positions: integers('positions'), logits: rows('') }];
  }
  const count = [...tensors.keys()].filter((name) => name.endsWith('.tokens')).length;
  return Array.from({ length: count }, (_, n) => ({
    tokens: integers(`${n}.tokens`),
    promptLength: integers(`${n}.prompt_length`)[0] as number,
    positions: integers(`${n}.positions`),
    logits: rows(`${n}.`),
  }));
}

/** What greedy choice writes, from the logits of every golden token; equal to the golden answer or different somewhere. */
export function greedyAnswer(rows: readonly Float32Array[], golden: Golden): number[] {
  // Each next token is the likeliest after those before it, given that all of those were the golden ones.
  return rows.slice(golden.promptLength - 1, -1).map((row) => row.indexOf(Math.max(...row)));
}
