/** Pieces of weights on their way into memory of ours: read from a file, or made. */
import { tensorBytes } from '../gguf/sizes.ts';
import type { GgmlTypeName } from '../gguf/types.ts';
import { fillSynthetic, type SyntheticRecipe } from '../model/synthetic-blocks.ts';
import { type OpenFile, readFully } from './model-files.ts';

/** Bytes to bring to an address: as they are in the file, or made. */
export type Piece =
  | {
      readonly kind: 'file';
      readonly file: number;
      readonly offset: number;
      readonly bytes: number;
      readonly address: number;
    }
  /**
   * The key half of one head of an old-style kv_b matrix: `rows` rows of `columns` values of `type`, which become the
   * float32 matrix [columns][rows] that the absorbed query needs.
   */
  | {
      readonly kind: 'transposed';
      readonly file: number;
      readonly offset: number;
      readonly type: GgmlTypeName;
      readonly rows: number;
      readonly columns: number;
      readonly address: number;
    }
  /** Random blocks of a synthetic model: `bytes` bytes from byte `offset` of the tensor. */
  | {
      readonly kind: 'synthetic';
      readonly recipe: SyntheticRecipe;
      readonly offset: number;
      readonly bytes: number;
      readonly address: number;
    };

const chunkBytes = 16 << 20;

/** Pieces cut into chunks small enough to report progress by. */
export function* chunksOf(pieces: readonly Piece[]): Generator<Piece, undefined> {
  for (const piece of pieces) {
    if (piece.kind === 'transposed') {
      yield piece;
      continue;
    }
    for (let done = 0; done < piece.bytes; done += chunkBytes) {
      const bytes = Math.min(chunkBytes, piece.bytes - done);
      yield { ...piece, bytes, offset: piece.offset + done, address: piece.address + done };
    }
  }
  return undefined;
}

/** Bytes a piece takes in memory. */
export function placedBytes(piece: Piece): number {
  return piece.kind === 'transposed' ? piece.rows * piece.columns * Float32Array.BYTES_PER_ELEMENT : piece.bytes;
}

/** Weight rows of `type` to floats, [rows][columns]. */
export type Dequantize = (type: GgmlTypeName, raw: Uint8Array, rows: number, columns: number) => Float32Array;

/** Fills `target`, the piece's place; returns the bytes it took from the model. */
export async function fillPiece(
  piece: Piece,
  target: Uint8Array,
  files: readonly OpenFile[],
  dequantize: Dequantize,
): Promise<number> {
  if (piece.kind === 'synthetic') {
    fillSynthetic(piece.recipe, piece.offset, target);
    return piece.bytes;
  }
  const file = files[piece.file] as OpenFile;
  if (piece.kind === 'file') {
    await readFully(file, target, piece.offset);
    return piece.bytes;
  }
  const { type, rows, columns } = piece;
  const raw = new Uint8Array(tensorBytes(type, [columns, rows]));
  await readFully(file, raw, piece.offset);
  const from = dequantize(type, raw, rows, columns);
  const to = new Float32Array(target.buffer, target.byteOffset, rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      to[column * rows + row] = from[row * columns + column] as number;
    }
  }
  return raw.length;
}
