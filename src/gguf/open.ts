/** Opens a model: a file, a split set by any of its parts, or a folder that holds one of those. */
import { open, readdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { perigeeError } from '../errors.ts';
import { type GgufFile, parseGguf } from './parse.ts';
import { fileSource } from './source.ts';
import type { GgufModel, GgufTensor } from './types.ts';

/** PREFIX-00002-of-00005.gguf: parts count from 1 in names, from 0 in split.no. */
const partName = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/;

interface OpenedFile extends GgufFile {
  readonly path: string;
  readonly bytes: number;
}

async function statModel(path: string): Promise<{ readonly folder: boolean; readonly bytes: number }> {
  try {
    const info = await stat(path);
    return { folder: info.isDirectory(), bytes: info.size };
  } catch (cause) {
    throw notFound(path, cause);
  }
}

function notFound(path: string, cause: unknown): Error {
  const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
  const why = code === 'ENOENT' ? 'nothing is there' : `it cannot be read (${code ?? cause})`;
  return perigeeError('MODEL_NOT_FOUND', { path, why }, { cause });
}

async function openFile(path: string): Promise<OpenedFile> {
  const handle = await open(path, 'r').catch((cause: unknown) => Promise.reject(notFound(path, cause)));
  try {
    const { size } = await handle.stat();
    return { ...(await parseGguf(fileSource(path, size, handle))), path, bytes: size };
  } finally {
    await handle.close();
  }
}

/** The one model in `folder`: its single .gguf file, or the first part of its single split set. */
async function modelInFolder(folder: string): Promise<string> {
  const names = (await readdir(folder)).filter((name) => name.endsWith('.gguf')).sort();
  const models = new Map<string, string>();
  for (const name of names) {
    const part = partName.exec(name);
    const model = part ? `${part[1]}-of-${part[3]}` : name;
    if (!models.has(model)) models.set(model, name);
  }
  const [only, ...others] = models.values();
  if (only === undefined) throw perigeeError('MODEL_NOT_FOUND', { path: folder, why: 'the folder has no .gguf file' });
  if (others.length > 0) {
    const why = `the folder holds ${models.size} models (${[only, ...others].join(', ')}); name one of them`;
    throw perigeeError('MODEL_NOT_FOUND', { path: folder, why });
  }
  return join(folder, only);
}

function partPaths(path: string, count: number): string[] {
  const part = partName.exec(basename(path));
  if (!part || Number(part[3]) !== count) {
    const what = `'${path}' is one of ${count} parts by its metadata, so its name must end in -NNNNN-of-${`${count}`.padStart(5, '0')}.gguf`;
    throw perigeeError('GGUF_BAD_SPLIT', { what });
  }
  return Array.from({ length: count }, (_, index) => {
    return join(dirname(path), `${part[1]}-${`${index + 1}`.padStart(5, '0')}-of-${part[3]}.gguf`);
  });
}

async function requireParts(paths: readonly string[]): Promise<void> {
  const found = await Promise.all(
    paths.map((path) =>
      stat(path).then(
        (info) => info.isFile(),
        () => false,
      ),
    ),
  );
  const missing = paths.filter((_, index) => !found[index]);
  if (missing.length === 0) return;
  const what = `${missing.length} of ${paths.length} parts are missing: ${missing.join(', ')}`;
  throw perigeeError('GGUF_BAD_SPLIT', { what });
}

/** Each part must know its own number and the same totals as the first. */
function checkParts(parts: readonly OpenedFile[]): void {
  const first = parts[0]?.metadata;
  for (const [index, part] of parts.entries()) {
    for (const [key, expected] of [
      ['split.no', index],
      ['split.count', parts.length],
    ] as const) {
      const found = part.metadata.get(key);
      if (found !== expected)
        throw perigeeError('GGUF_BAD_SPLIT', { what: `'${part.path}' says ${key} ${found}, expected ${expected}` });
    }
    for (const key of ['general.architecture', 'general.name', 'split.tensors.count']) {
      const found = part.metadata.get(key);
      if (found !== undefined && found !== first?.get(key)) {
        const what = `'${part.path}' belongs to another model: ${key} is ${found}, in the first part ${first?.get(key)}`;
        throw perigeeError('GGUF_BAD_SPLIT', { what });
      }
    }
  }
}

function joinParts(parts: readonly OpenedFile[]): GgufModel {
  const tensors = new Map<string, GgufTensor>();
  for (const [file, part] of parts.entries()) {
    for (const tensor of part.tensors) {
      const other = tensors.get(tensor.name);
      if (other) {
        const what = `tensor '${tensor.name}' is in both '${parts[other.file]?.path}' and '${part.path}'`;
        throw perigeeError('GGUF_BAD_SPLIT', { what });
      }
      tensors.set(tensor.name, { ...tensor, file });
    }
  }
  const first = parts[0] as OpenedFile;
  const declared = first.metadata.get('split.tensors.count');
  if (parts.length > 1 && declared !== tensors.size) {
    throw perigeeError('GGUF_BAD_SPLIT', {
      what: `its parts hold ${tensors.size} tensors, split.tensors.count says ${declared}`,
    });
  }
  const files = parts.map(({ path, bytes }) => ({ path, bytes }));
  return { files, version: first.version, metadata: first.metadata, tensors };
}

/**
 * Opens the model at `path`: a GGUF file, any part of a split set, or a folder holding one of those. Only headers are read;
 * every tensor is known to lie inside its file.
 */
export async function openGguf(path: string): Promise<GgufModel> {
  const found = await statModel(path);
  const file = await openFile(found.folder ? await modelInFolder(path) : path);
  const count = file.metadata.get('split.count');
  if (count === undefined || count === 1 || count === 0) return joinParts([file]);
  if (typeof count !== 'number' || !Number.isInteger(count) || count < 1 || count > 99_999) {
    throw perigeeError('GGUF_BAD_SPLIT', { what: `'${file.path}' says split.count ${count}, expected 1 to 99999` });
  }
  const paths = partPaths(file.path, count);
  await requireParts(paths);
  const parts: OpenedFile[] = [];
  for (const part of paths) parts.push(part === file.path ? file : await openFile(part));
  checkParts(parts);
  return joinParts(parts);
}
