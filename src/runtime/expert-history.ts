/** How often each expert of a model was chosen, over all runs: a file per model in the user's cache folder. */
import { createHash } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import type { StartOptions } from './runtime.ts';

/** What is old counts half after as many choices again. */
const halfLife = 0.5;

export class ExpertHistory {
  /** [layers][experts], of any scale. */
  readonly counts: Float64Array;
  readonly #path: string;
  #seen: Uint32Array;

  /** Reads what earlier runs have seen; nothing where that is missing or of another shape. */
  static async open({ config, tensors, files }: Pick<StartOptions, 'config' | 'tensors' | 'files'>) {
    const { layers, experts } = config;
    const embedding = [tensors.token_embd.type, tensors.token_embd.offset];
    const model = JSON.stringify([config.name, layers, experts, files.map((file) => basename(file)), embedding]);
    const key = createHash('sha256').update(model).digest('hex').slice(0, 16);
    const cache = process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache');
    const history = new ExpertHistory(join(cache, 'perigee', 'experts', `${key}.json`), layers * experts);
    try {
      const read: unknown = JSON.parse(await readFile(history.#path, 'utf8'));
      const sound = Array.isArray(read) && read.length === layers * experts && read.every((n) => n >= 0);
      if (sound) history.counts.set(read);
    } catch {
      // A cache: there need not be one.
    }
    return history;
  }

  private constructor(path: string, length: number) {
    this.#path = path;
    this.counts = new Float64Array(length);
    this.#seen = new Uint32Array(length);
  }

  /** Takes in the choices of this run, `total` since its start; what was known before fades as much as is new. */
  add(total: Uint32Array): void {
    const news = total.map((count, index) => count - (this.#seen[index] ?? 0));
    const fresh = news.reduce((sum, count) => sum + count, 0);
    if (fresh === 0) return;
    const known = this.counts.reduce((sum, count) => sum + count, 0);
    const fade = halfLife ** (fresh / Math.max(known, fresh));
    this.counts.forEach((count, index) => {
      this.counts[index] = count * fade + (news[index] as number);
    });
    this.#seen = total.slice();
  }

  async save(): Promise<void> {
    const partial = `${this.#path}.${process.pid}`;
    try {
      await mkdir(dirname(this.#path), { recursive: true });
      await writeFile(partial, JSON.stringify(Array.from(this.counts, (count) => Math.round(count))));
      await rename(partial, this.#path);
    } catch {
      // A read-only home costs the memory of this run, no more.
    }
  }
}
