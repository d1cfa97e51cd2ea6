/** A trace kept in a temporary file, so that only one backend need be in memory at a time. */
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TracePart } from './trace.ts';

export class Recording {
  readonly #folder: string;
  readonly #file: FileHandle;
  #position = 0;

  private constructor(folder: string, file: FileHandle) {
    this.#folder = folder;
    this.#file = file;
  }

  static async create(): Promise<Recording> {
    const folder = await mkdtemp(join(tmpdir(), 'perigee-conform-'));
    return new Recording(folder, await open(join(folder, 'trace'), 'w+'));
  }

  async append({ values }: TracePart): Promise<void> {
    await this.#file.write(bytesOf(values), 0, values.byteLength, this.#position);
    this.#position += values.byteLength;
  }

  /** Reading begins again at the first part. */
  rewind(): void {
    this.#position = 0;
  }

  /** What was appended where `part` now is: parts come in the same order and sizes from every backend. */
  async next({ values }: TracePart): Promise<TracePart['values']> {
    const recorded = values instanceof Int32Array ? new Int32Array(values.length) : new Float32Array(values.length);
    const { bytesRead } = await this.#file.read(bytesOf(recorded), 0, recorded.byteLength, this.#position);
    if (bytesRead !== recorded.byteLength) throw new Error('the recording ended before the trace');
    this.#position += bytesRead;
    return recorded;
  }

  async close(): Promise<void> {
    await this.#file.close();
    await rm(this.#folder, { recursive: true, force: true });
  }
}

function bytesOf(values: Float32Array | Int32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
