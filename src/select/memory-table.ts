/** What a place must hold beside what it has, line by line, and what to change where that does not fit. */
import { perigeeError } from '../errors.ts';
import { formatBytes } from '../gguf/sizes.ts';

export interface MemoryLine {
  readonly name: string;
  readonly bytes: number;
  readonly detail: string;
}

/** What grows with the context: positions, over all sequences, and bytes of each. */
export interface CacheNeed {
  readonly bytesPerToken: number;
  /** Positions each sequence may have, and how many sequences are kept at once. */
  readonly contextTokens: number;
  readonly sequences: number;
}

export interface MemoryNeed {
  /** All but the cache. */
  readonly lines: readonly MemoryLine[];
  /** Null where no cache lies. */
  readonly cache: CacheNeed | null;
}

export interface MemoryTable {
  /** "memory", or "GPU 0". */
  readonly place: string;
  readonly lines: readonly MemoryLine[];
  readonly need: number;
  readonly available: number;
  readonly fits: boolean;
  /** The smallest change that makes it fit; empty when it does. */
  readonly advice: string;
}

const sum = (lines: readonly MemoryLine[]) => lines.reduce((total, { bytes }) => total + bytes, 0);

/** Need beside have. `advice` is given where no shorter context would do. */
export function memoryTable(place: string, need: MemoryNeed, available: number, advice?: string): MemoryTable {
  const fixed = sum(need.lines);
  const lines = need.cache === null ? need.lines : [...need.lines, cacheLine(need.cache)];
  const total = sum(lines);
  const fits = total <= available;
  const shorter = fits || need.cache === null ? null : shorterContext(need.cache, available - fixed);
  const said = fits ? '' : (shorter ?? advice ?? lessWeight(fixed, available));
  return { place, lines, need: total, available, fits, advice: said };
}

export function cacheBytes({ bytesPerToken, contextTokens, sequences }: CacheNeed): number {
  return bytesPerToken * contextTokens * sequences;
}

function cacheLine(cache: CacheNeed): MemoryLine {
  const { bytesPerToken, contextTokens, sequences } = cache;
  const times = sequences === 1 ? '' : ` x ${sequences} sequences`;
  const detail = `${formatBytes(bytesPerToken)} a token x ${contextTokens} tokens${times}`;
  return { name: 'KV cache', bytes: cacheBytes(cache), detail };
}

/** Contexts are offered in steps of 256; below one step a model is no use. */
const contextStep = 256;

function shorterContext({ bytesPerToken, contextTokens, sequences }: CacheNeed, spare: number): string | null {
  const tokens = spare / bytesPerToken;
  const context = Math.floor(tokens / sequences / contextStep) * contextStep;
  if (context >= contextStep) return `Use --context ${Math.min(context, contextTokens)}: that much fits.`;
  return tokens >= contextStep ? 'Keep fewer sequences at once: one fits.' : null;
}

function lessWeight(fixed: number, available: number): string {
  const missing = formatBytes(fixed - available * 0.95);
  const target = formatBytes(Math.max(0, available * 0.95));
  return `Its weights alone need about ${missing} more than there is: free memory, or take a quantization of at most ${target}.`;
}

/** The tables for people; the place is named where there are several. */
export function renderMemoryTables(tables: readonly MemoryTable[]): string {
  const rows = tables.flatMap((table) => [
    ...(table.place === 'memory' && tables.length === 1 ? [] : [[table.place, '', ''] as const]),
    ...table.lines.map((line) => [line.name, formatBytes(line.bytes), line.detail] as const),
    ['total', formatBytes(table.need), ''] as const,
    ['available', formatBytes(table.available), table.fits ? 'it fits' : 'it does not fit'] as const,
  ]);
  const names = Math.max(...rows.map(([name]) => name.length));
  const sizes = Math.max(...rows.map(([, size]) => size.length));
  return rows
    .map(([name, size, detail]) => `${name.padEnd(names)}  ${size.padStart(sizes)}  ${detail}`.trimEnd())
    .join('\n');
}

/** Throws MODEL_DOES_NOT_FIT, with the tables and the smallest change that fits, unless everything fits. */
export function assertFits(tables: readonly MemoryTable[]): void {
  const short = tables.find(({ fits }) => !fits);
  if (short === undefined) return;
  throw perigeeError('MODEL_DOES_NOT_FIT', {
    place: short.place === 'memory' ? 'in memory' : `on ${short.place}`,
    need: formatBytes(short.need),
    have: formatBytes(short.available),
    table: renderMemoryTables(tables),
    advice: short.advice,
  });
}
