/** The benchmark's table: medians, their spread, and ratios of times taken in the same round. */
import type { Workload } from './protocol.ts';
import type { Column } from './rounds.ts';

/** The peer that others are measured by, or the next of the list where it is missing. */
const bases = ['llama.cpp', 'node-llama-cpp', 'perigee-wasm'];

export interface Cell {
  readonly tokensPerSecond: number;
  readonly slowest: number;
  readonly fastest: number;
  readonly rounds: number;
  /** Speed over the base's: the median of the rounds' own ratios; null where they share no round. */
  readonly ratio: number | null;
}

export const title = ({ kind, tokens }: Workload) =>
  kind === 'first-token' ? `first token of ${tokens}` : `${kind} ${tokens}`;

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] as number;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] as number)) / 2;
}

export function baseOf({ settings }: Column): string | null {
  return bases.find((name) => name in settings) ?? null;
}

/** GB/s: whichever code reads faster shows what the memory gives. */
const readLimit = ({ limits }: Column) => Math.max(limits.wasm.readGbPerSecond, limits.native?.readGbPerSecond ?? 0);

/** What one peer did with one workload; null where it was not measured. */
export function cellOf(column: Column, peer: string, workload: Workload): Cell | null {
  const rates = (name: string) =>
    new Map(
      column.measurements
        .filter((each) => each.peer === name && each.workload === workload)
        .map(({ round, seconds }) => [round, workload.tokens / seconds]),
    );
  const own = rates(peer);
  if (own.size === 0) return null;
  const base = rates(baseOf(column) ?? peer);
  const ratios = [...own].flatMap(([round, rate]) => (base.has(round) ? [rate / (base.get(round) as number)] : []));
  const all = [...own.values()];
  return {
    tokensPerSecond: median(all),
    slowest: Math.min(...all),
    fastest: Math.max(...all),
    rounds: all.length,
    ratio: ratios.length === 0 ? null : median(ratios),
  };
}

function cellText(cell: Cell | null, workload: Workload): string {
  if (cell === null) return '-';
  const ratio = cell.ratio === null ? '' : `  ${cell.ratio.toFixed(2)}x`;
  if (workload.kind === 'first-token') {
    const seconds = (rate: number) => (workload.tokens / rate).toFixed(1);
    return `${seconds(cell.tokensPerSecond)} s (${seconds(cell.fastest)}-${seconds(cell.slowest)})${ratio}`;
  }
  const [rate, low, high] = [cell.tokensPerSecond, cell.slowest, cell.fastest].map((each) => each.toPrecision(3));
  return `${rate} (${low}-${high})${ratio}`;
}

/** The table of one number of threads as text. `tokenBytes`: weights that one decoded token reads. */
export function columnText(column: Column, workloads: readonly Workload[], tokenBytes: number): string {
  const { threads, limits, settings, notes } = column;
  const names = Object.keys(settings);
  const rows = [
    ['tokens/s', ...workloads.map(title), 'weights in decode'],
    ...names.map((name) => [
      name,
      ...workloads.map((workload) => cellText(cellOf(column, name, workload), workload)),
      decodeShare(column, name, workloads, tokenBytes),
    ]),
  ];
  const widths = (rows[0] as string[]).map((_, at) => Math.max(...rows.map((row) => row[at]?.length ?? 0)));
  const lines = rows.map((row) =>
    row
      .map((cell, at) => cell.padEnd(widths[at] as number))
      .join('  ')
      .trimEnd(),
  );
  const dots = Object.entries(limits).map(([backend, { int8Gops }]) => `${int8Gops.toFixed(0)} in ${backend}`);
  const machine = `reads ${readLimit(column).toFixed(1)} GB/s, 8-bit dots in Gop/s: ${dots.join(', ')}`;
  return [
    `${threads} ${threads === 1 ? 'thread' : 'threads'}; the machine ${machine}`,
    `medians (slowest-fastest round), speed relative to ${baseOf(column) ?? 'nothing'}`,
    ...lines,
    ...names.map((name) => `  ${name}: ${settings[name]}`),
    ...notes.map((line) => `  ${line}`),
  ].join('\n');
}

function decodeShare(column: Column, peer: string, workloads: readonly Workload[], tokenBytes: number): string {
  const decode = workloads.find(({ kind }) => kind === 'decode');
  const cell = decode === undefined ? null : cellOf(column, peer, decode);
  if (cell === null) return '-';
  const rate = (cell.tokensPerSecond * tokenBytes) / 1e9;
  return `${rate.toFixed(1)} GB/s, ${((100 * rate) / readLimit(column)).toFixed(0)} %`;
}
