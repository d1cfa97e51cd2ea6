/** A trace kept in a temporary file, so that only one backend need be in memory at a time. */
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ModelConfig } from '../model/config.ts';
import { type TracePart, type TracePoint, tracePoints } from './trace.ts';

const { BYTES_PER_ELEMENT } = Float32Array;

export class Recording {
  readonly #folder: string;
  readonly #file: FileHandle;
  readonly #points: readonly TracePoint[];
  /** [points + 1] values of a token at all points before. */
  readonly #before: readonly number[];

  private constructor(folder: string, file: FileHandle, config: ModelConfig) {
    this.#folder = folder;
    this.#file = file;
    this.#points = tracePoints(config);
    const before = [0];
    for (const { width } of this.#points) before.push((before.at(-1) as number) + width);
    this.#before = before;
  }

  static async create(config: ModelConfig): Promise<Recording> {
    const folder = await mkdtemp(join(tmpdir(), 'perigee-conform-'));
    return new Recording(folder, await open(join(folder, 'trace'), 'w+'), config);
  }

  async append({ point, firstToken, values }: TracePart): Promise<void> {
    await this.#file.write(bytesOf(values), 0, values.byteLength, this.#position(point, firstToken, values));
  }

  /** What was appended where `part` now is: every backend runs the same steps. */
  async read<Values extends TracePart['values']>(part: TracePart & { readonly values: Values }): Promise<Values> {
    const { point, firstToken, values } = part;
    const recorded = values.slice() as Values;
    await this.#fill(recorded, point, firstToken);
    return recorded;
  }

  /** [layers + 1][tokens][hidden] of a step: what each layer began with, and the head. */
  async residuals(firstToken: number, tokens: number): Promise<Float32Array> {
    const kept = [...this.#points.entries()].filter(([, { tap }]) => tap === 'embedding' || tap === 'residual');
    const size = tokens * (kept[0]?.[1].width ?? 0);
    const all = new Float32Array(kept.length * size);
    for (const [index, [point]] of kept.entries()) {
      await this.#fill(all.subarray(index * size, (index + 1) * size), point, firstToken);
    }
    return all;
  }

  async #fill(values: TracePart['values'], point: number, firstToken: number): Promise<void> {
    const position = this.#position(point, firstToken, values);
    const { bytesRead } = await this.#file.read(bytesOf(values), 0, values.byteLength, position);
    if (bytesRead !== values.byteLength) throw new Error('the recording ended before the trace');
  }

  /** Steps lie one after the other, in each its points. */
  #position(point: number, firstToken: number, values: TracePart['values']): number {
    const tokens = values.length / this.#points[point]!.width;
    return BYTES_PER_ELEMENT * (firstToken * this.#before.at(-1)! + tokens * this.#before[point]!);
  }

  async close(): Promise<void> {
    await this.#file.close();
    await rm(this.#folder, { recursive: true, force: true });
  }
}

function bytesOf(values: Float32Array | Int32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
