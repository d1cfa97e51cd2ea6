/** The model's files while weights are read: every range in full, or a typed error that names the file. */
import { type FileHandle, open } from 'node:fs/promises';
import { perigeeError } from '../errors.ts';

export interface OpenFile {
  readonly path: string;
  readonly handle: FileHandle;
}

/** Opens all files, hands them to `use`, and closes them whatever happens. */
export async function withFiles<T>(
  paths: readonly string[],
  use: (files: readonly OpenFile[]) => Promise<T>,
): Promise<T> {
  const files = await Promise.all(paths.map(async (path) => ({ path, handle: await open(path, 'r') })));
  try {
    return await use(files);
  } finally {
    await Promise.all(files.map(({ handle }) => handle.close()));
  }
}

/** Fills `target` from byte `position` of a file. */
export async function readFully({ handle, path }: OpenFile, target: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < target.length; ) {
    const { bytesRead } = await handle.read(target, done, target.length - done, position + done);
    if (bytesRead === 0) throw perigeeError('MODEL_FILE_SHRANK', { path, position: position + done });
    done += bytesRead;
  }
}
