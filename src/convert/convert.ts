/** `perigee convert`: a Hugging Face checkpoint folder to one GGUF file, streamed through a few megabytes per core. */
import { readFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { Piscina } from 'piscina';
import { perigeeError } from '../errors.ts';
import { tensorBytes } from '../gguf/sizes.ts';
import type { GgmlTypeName } from '../gguf/types.ts';
import { type GgufEntry, type GgufOutputTensor, writeGguf } from '../gguf/write.ts';
import { mixFileType } from '../model/weight-mix.ts';
import { coreFile, entryFile } from '../runtime/assets.ts';
import type { PieceResult } from './encode-worker.ts';
import { type HfConfig, parseHfConfig } from './hf-config.ts';
import { modelMetadata } from './metadata.ts';
import { planTensors, type TargetTensor } from './names.ts';
import { cutPieces, type Piece } from './pieces.ts';
import { parseJsonObject, readTensorTable } from './safetensors.ts';
import { SourceTable } from './sources.ts';
import { chooseTensorType, type TypeWishes } from './tensor-types.ts';
import { tokenizerMetadata } from './tokenizer-metadata.ts';

export interface ConvertProgress {
  readonly bytesWritten: number;
  readonly bytesTotal: number;
  readonly tensor: string;
}

export interface ConvertOptions extends TypeWishes {
  readonly onProgress?: (progress: ConvertProgress) => void;
}

export interface ConvertResult {
  readonly path: string;
  readonly tensors: number;
  /** Tensors of each GGUF type in the file. */
  readonly types: Readonly<Partial<Record<GgmlTypeName, number>>>;
  /** Things the user should know: what was left out, what was rounded. */
  readonly notes: readonly string[];
}

/** Converts the checkpoint in `folder` to `path`, which appears only when complete. */
export async function convertCheckpoint(folder: string, path: string, options: ConvertOptions): Promise<ConvertResult> {
  const { config, multimodal } = await readConfig(folder);
  const table = new SourceTable(folder, config, await readTensorTable(folder));
  const prefix = [...table.unused].some((name) => name.startsWith('language_model.')) ? 'language_model.' : '';
  const plan = planPieces(config, prefix, table, options);
  const notes = checkLeftovers(folder, config, table, prefix, multimodal);
  const tokenizer = await tokenizerMetadata(folder, config);
  if (!tokenizer.found) notes.push('The checkpoint has no tiktoken.model: the file has weights but no tokenizer.');
  const metadata = [
    ...modelMetadata(config, basename(resolve(folder)), mixFileType(options.type)),
    ...tokenizer.entries,
  ];
  const roundedScales = await writePieces(path, metadata, plan, options);
  if (roundedScales > 0)
    notes.push(`${roundedScales} INT4 scales were rounded to half precision; all others are exact.`);
  const types: Partial<Record<GgmlTypeName, number>> = {};
  for (const { type } of plan) types[type] = (types[type] ?? 0) + 1;
  return { path, tensors: plan.length, types, notes };
}

async function readConfig(folder: string): Promise<{ config: HfConfig; multimodal: boolean }> {
  const file = join(folder, 'config.json');
  const text = await readFile(file, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT' || cause.code === 'ENOTDIR') throw perigeeError('CONVERT_NO_CONFIG', { folder });
    throw cause;
  });
  const json = parseJsonObject(file, text);
  return { config: parseHfConfig(file, json), multimodal: json.text_config !== undefined };
}

interface PlannedTensor {
  readonly target: TargetTensor;
  readonly type: GgmlTypeName;
  readonly pieces: readonly Piece[];
}

function planPieces(config: HfConfig, prefix: string, table: SourceTable, wishes: TypeWishes): PlannedTensor[] {
  return planTensors(config, prefix, (name) => table.has(name)).map((target) => {
    const type = chooseTensorType(wishes, target, config);
    return { target, type, pieces: cutPieces(target, type, (source) => table.matrix(source)) };
  });
}

/** Explains tensors nothing was made of; unexplained ones are an error. Returns notes for the user. */
function checkLeftovers(
  folder: string,
  config: HfConfig,
  table: SourceTable,
  prefix: string,
  multimodal: boolean,
): string[] {
  let prediction = 0;
  let vision = 0;
  const extra: string[] = [];
  for (const name of table.unused) {
    const layer = /^model\.layers\.(\d+)\./.exec(name.slice(name.startsWith(prefix) ? prefix.length : 0))?.[1];
    if (layer !== undefined && Number(layer) >= config.layers) prediction += 1;
    else if (multimodal && prefix !== '' && !name.startsWith(prefix)) vision += 1;
    else if (name.endsWith('rotary_emb.inv_freq')) continue;
    else if (config.tiedEmbeddings && name === `${prefix}lm_head.weight`) continue;
    else extra.push(name);
  }
  if (extra.length > 0)
    throw perigeeError('CONVERT_TENSOR_EXTRA', { folder, count: extra.length, tensor: extra[0] ?? '' });
  const notes: string[] = [];
  if (prediction > 0) notes.push(`${prediction} tensors of multi-token-prediction layers were left out.`);
  if (vision > 0) notes.push(`${vision} tensors outside the language model (vision) were left out.`);
  return notes;
}

/** Makes and writes all pieces in order; returns how many INT4 scales had to be rounded. */
async function writePieces(
  path: string,
  metadata: readonly GgufEntry[],
  plan: readonly PlannedTensor[],
  options: ConvertOptions,
): Promise<number> {
  const threads = availableParallelism();
  const encodes = plan.some(({ type }) => type !== 'F32');
  const module = encodes ? await WebAssembly.compile(await readFile(coreFile('simd128'))) : null;
  const filename = entryFile('src/convert/encode-worker');
  const pool = new Piscina({ filename, minThreads: threads, maxThreads: threads, workerData: { module } });
  let roundedScales = 0;
  const results = inOrder(
    plan.flatMap(({ pieces }) => pieces),
    threads * 2,
    async (piece) => {
      const result = (await pool.run(piece, { name: 'makePiece' })) as PieceResult;
      if (!result.finite) throw perigeeError('CONVERT_NOT_FINITE', { tensor: piece.tensor });
      roundedScales += result.roundedScales;
      return result.bytes;
    },
  );
  async function* take(count: number): AsyncGenerator<Uint8Array> {
    for (let i = 0; i < count; i += 1) yield (await results.next()).value as Uint8Array;
  }
  const tensors = plan.map(({ target, type, pieces }): GgufOutputTensor => {
    const { name, shape } = target.spec;
    return { name, type, shape, bytes: tensorBytes(type, shape), data: () => take(pieces.length) };
  });
  try {
    await writeGguf(path, { metadata, tensors, ...(options.onProgress && { onProgress: options.onProgress }) });
  } finally {
    await results.return(undefined);
    await pool.destroy();
  }
  return roundedScales;
}

/** Runs `work` over `items`, at most `window` at a time, and yields the results in the items' order. */
async function* inOrder<Item, Result>(
  items: readonly Item[],
  window: number,
  work: (item: Item) => Promise<Result>,
): AsyncGenerator<Result, void, undefined> {
  const running: Promise<Result>[] = [];
  try {
    for (const item of items) {
      if (running.length >= window) yield (await running.shift()) as Result;
      const result = work(item);
      // A failure is reported when its turn comes; until then nobody listens, which Node would take for neglect.
      result.catch(() => undefined);
      running.push(result);
    }
    while (running.length > 0) yield (await running.shift()) as Result;
  } finally {
    await Promise.allSettled(running);
  }
}
