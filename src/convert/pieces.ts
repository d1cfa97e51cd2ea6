/** Cuts tensors into pieces of bounded size, the unit of work that a worker reads, encodes and hands back. */
import type { GgmlTypeName } from '../gguf/types.ts';
import type { SourceRows, TargetTensor } from './names.ts';
import type { SourceMatrix } from './sources.ts';

/** Rows of one source matrix; `transpose` stores the block of them turned over. */
export interface PieceRows {
  readonly matrix: SourceMatrix;
  readonly first: number;
  readonly count: number;
  readonly transpose: boolean;
}

/** Consecutive rows of one GGUF tensor, as plain data. */
export interface Piece {
  readonly tensor: string;
  readonly type: GgmlTypeName;
  /** Elements of one output row. */
  readonly columns: number;
  readonly rows: number;
  readonly parts: readonly PieceRows[];
}

/** Elements of one piece at most (rows and transposed blocks stay whole): 4 MB as floats, so that many may be in flight. */
const pieceElements = 1 << 20;

/** The pieces of `target` in order. */
export function cutPieces(
  target: TargetTensor,
  type: GgmlTypeName,
  locate: (source: SourceRows) => SourceMatrix,
): Piece[] {
  const columns = target.spec.shape[0] ?? 0;
  const pieces: Piece[] = [];
  let parts: PieceRows[] = [];
  let elements = 0;
  const flush = () => {
    if (parts.length > 0) pieces.push({ tensor: target.spec.name, type, columns, rows: elements / columns, parts });
    parts = [];
    elements = 0;
  };
  for (const source of target.sources) {
    for (const part of cutSource(source, locate(source))) {
      const size = part.count * (source.shape.at(-1) ?? 0);
      if (elements + size > pieceElements) flush();
      parts.push(part);
      elements += size;
    }
  }
  flush();
  return pieces;
}

function cutSource(source: SourceRows, matrix: SourceMatrix): PieceRows[] {
  const { first, count, transpose } = source;
  const step = transpose ? count : Math.max(1, Math.floor(pieceElements / matrix.columns));
  const parts: PieceRows[] = [];
  for (let row = 0; row < count; row += step) {
    parts.push({ matrix, first: first + row, count: Math.min(step, count - row), transpose });
  }
  return parts;
}
