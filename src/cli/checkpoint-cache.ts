/** A Hugging Face checkpoint as a model: converted once, without loss where its numbers allow, and kept. */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { mkdir, readdir } from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { convertCheckpoint } from '../convert/convert.ts';
import { note, showProgress } from './output.ts';

export function isCheckpoint(path: string): boolean {
  const has = (name: string) => existsSync(join(path, name));
  return has('config.json') && (has('model.safetensors') || has('model.safetensors.index.json'));
}

/** The GGUF file made from the checkpoint in `folder`; converts when no earlier run left one of the same files. */
export async function convertedCheckpoint(folder: string): Promise<string> {
  const type = storedAs(folder);
  const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'perigee');
  const path = join(cache, `${basename(resolve(folder))}-${await fingerprint(folder)}-${type}.gguf`);
  if (existsSync(path)) return path;
  note(`${folder} is a checkpoint; converting it once to ${path} ('perigee convert' makes smaller types)`);
  await mkdir(cache, { recursive: true });
  const progress = showProgress('converting');
  const { notes } = await convertCheckpoint(folder, path, {
    type,
    onProgress: ({ bytesWritten, bytesTotal }) => progress.update(bytesWritten, bytesTotal),
  }).finally(() => progress.stop());
  for (const line of notes) note(line);
  return path;
}

/** The float type that holds what the checkpoint holds. */
function storedAs(folder: string): 'f32' | 'f16' | 'bf16' {
  const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as Record<string, unknown>;
  const type = config.torch_dtype ?? config.dtype;
  return type === 'float32' ? 'f32' : type === 'float16' ? 'f16' : 'bf16';
}

/** Changes when any file of the checkpoint does. */
async function fingerprint(folder: string): Promise<string> {
  const hash = createHash('sha256').update(resolve(folder));
  for (const name of (await readdir(folder)).sort()) {
    const { size, mtimeMs } = statSync(join(folder, name));
    hash.update(`${name} ${size} ${mtimeMs}\n`);
  }
  return hash.digest('hex').slice(0, 12);
}
