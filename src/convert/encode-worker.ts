/** A Piscina worker that makes pieces: reads their source rows, decodes to float, encodes in the engine's WASM. */
import { openSync, readSync } from 'node:fs';
import { move, workerData } from 'piscina';
import { rowBytes } from '../gguf/sizes.ts';
import { GgmlType } from '../gguf/types.ts';
import { decodeBlockFp8, decodeInt4, decodeScalars, repackInt4, type ScalarDtype, scalarBytes } from './decode.ts';
import { EncoderInstance } from './encoder-instance.ts';
import type { Piece, PieceRows } from './pieces.ts';
import type { SourceMatrix } from './sources.ts';

export interface PieceResult {
  readonly bytes: Uint8Array;
  /** INT4 scales that Q4_0's half could not hold exactly. */
  readonly roundedScales: number;
  /** False when a NaN or an infinity is among the source's numbers. */
  readonly finite: boolean;
}

const files = new Map<string, number>();
let encoder: EncoderInstance | undefined;

/** The Piscina task. */
export function makePiece(piece: Piece): PieceResult {
  const out = new Uint8Array(piece.rows * rowBytes(piece.type, piece.columns));
  if (repacks(piece)) return finish(out, repackPiece(piece, out), true);
  const values = piece.type === 'F32' ? new Float32Array(out.buffer) : instance().floats(piece.rows * piece.columns);
  let done = 0;
  for (const part of piece.parts) {
    const elements = part.count * part.matrix.columns;
    readPart(part, values.subarray(done, done + elements));
    done += elements;
  }
  const finite = allFinite(values);
  if (piece.type !== 'F32') instance().encode(GgmlType[piece.type], piece.rows, piece.columns, out);
  return finish(out, 0, finite);
}

function finish(bytes: Uint8Array, roundedScales: number, finite: boolean): PieceResult {
  move(bytes.buffer as ArrayBuffer);
  return { bytes, roundedScales, finite };
}

function instance(): EncoderInstance {
  encoder ??= new EncoderInstance((workerData as { module: WebAssembly.Module }).module);
  return encoder;
}

function repacks(piece: Piece): boolean {
  return piece.type === 'Q4_0' && piece.parts.every(({ matrix }) => matrix.encoding === 'int4' && matrix.group === 32);
}

function repackPiece(piece: Piece, out: Uint8Array): number {
  let rounded = 0;
  let done = 0;
  for (const part of piece.parts) {
    const elements = part.count * piece.columns;
    const packed = readBytes(part.matrix, part.first * (piece.columns / 2), elements / 2);
    const target = out.subarray((done / 32) * 18, ((done + elements) / 32) * 18);
    rounded += repackInt4(packed, readScales(part, 32), target);
    done += elements;
  }
  return rounded;
}

function readPart(part: PieceRows, out: Float32Array): void {
  if (!part.transpose) {
    readRows(part, out);
    return;
  }
  const rows = new Float32Array(out.length);
  readRows(part, rows);
  const { columns } = part.matrix;
  for (let column = 0, at = 0; column < columns; column += 1) {
    for (let row = 0; row < part.count; row += 1) out[at++] = rows[row * columns + column] as number;
  }
}

function readRows(part: PieceRows, out: Float32Array): void {
  const { matrix, first } = part;
  const start = first * matrix.columns;
  if (matrix.encoding === 'plain') {
    const size = scalarBytes[matrix.dtype];
    decodeScalars(matrix.dtype, readBytes(matrix, start * size, out.length * size), out);
  } else if (matrix.encoding === 'fp8') {
    const scales = readFp8Scales(matrix, first, part.count);
    decodeBlockFp8(readBytes(matrix, start, out.length), matrix.columns, first, matrix.block, scales, out);
  } else {
    decodeInt4(readBytes(matrix, start / 2, out.length / 2), readScales(part, matrix.group), matrix.group, out);
  }
}

function readFp8Scales(matrix: SourceMatrix & { encoding: 'fp8' }, first: number, count: number): Float32Array {
  const [blockRows, blockColumns] = matrix.block;
  const perRow = Math.ceil(matrix.columns / blockColumns);
  const from = Math.floor(first / blockRows);
  const to = Math.ceil((first + count) / blockRows);
  return readNumbers(matrix.scales, from * perRow, (to - from) * perRow);
}

function readScales(part: PieceRows, group: number): Float32Array {
  const { matrix } = part;
  if (matrix.encoding !== 'int4') throw new Error('only INT4 matrices have group scales');
  const perRow = matrix.columns / group;
  return readNumbers(matrix.scales, part.first * perRow, part.count * perRow);
}

function readNumbers(
  place: { file: string; offset: number; dtype: ScalarDtype },
  first: number,
  count: number,
): Float32Array {
  const size = scalarBytes[place.dtype];
  const out = new Float32Array(count);
  decodeScalars(place.dtype, readBytes(place, first * size, count * size), out);
  return out;
}

function readBytes(place: { file: string; offset: number }, from: number, bytes: number): Uint8Array {
  let file = files.get(place.file);
  if (file === undefined) {
    file = openSync(place.file, 'r');
    files.set(place.file, file);
  }
  const buffer = new Uint8Array(bytes);
  let done = 0;
  while (done < bytes) {
    const read = readSync(file, buffer, done, bytes - done, place.offset + from + done);
    if (read === 0) throw new Error(`${place.file} became shorter while it was read`);
    done += read;
  }
  return buffer;
}

/** A NaN or infinity times zero is NaN, which no later addition removes. */
function allFinite(values: Float32Array): boolean {
  let probe = 0;
  for (let i = 0; i < values.length; i += 1) probe += (values[i] as number) * 0;
  return probe === 0;
}
