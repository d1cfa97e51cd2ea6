/** From a placement to what the addon binds: weights stay where they are in the mapped files, the rest is made. */
import { alignUp } from '../gguf/sizes.ts';
import type { ModelConfig } from '../model/config.ts';
import type { Binding, Placed } from '../model/plan.ts';
import type { ModelTensors } from '../model/tensors.ts';
import { madeFile } from './native-addon.ts';
import { type Piece, placedBytes } from './pieces.ts';
import { pieceOf, planFor, type Recipes, type Role } from './place.ts';

export interface NativeBinding extends Omit<Binding, 'matrices'> {
  /** Index of the mapped file, or `madeFile`. */
  readonly file: number;
  /** Of each matrix, in the file or in the rank's made memory. */
  readonly offsets: Float64Array;
}

export interface NativeRank {
  readonly bindings: readonly NativeBinding[];
  /** What TypeScript writes into the rank's made memory, and how large that is. */
  readonly pieces: readonly Piece[];
  readonly madeBytes: number;
}

/** The largest alignment that a kernel expects of weights, that of a float. */
const weightAlignment = 4;
const matrixAlignment = 64;

/** Whether the engine can use the bytes where they lie. Files whose tensors are not even aligned are rare but allowed. */
const mappable = ({ tensor, transposed }: Placed, recipes: Recipes): boolean =>
  !transposed && !recipes?.has(tensor.name) && tensor.offset % weightAlignment === 0;

/** Places every rank. */
export function placeNative(
  config: ModelConfig,
  tensors: ModelTensors,
  recipes: Recipes,
  role: Role,
  ranks: number,
): readonly NativeRank[] {
  return Array.from({ length: ranks }, (_, rank) => {
    const plan = planFor(role)(config, tensors, rank, ranks, { begin: 0, end: Number.MAX_SAFE_INTEGER });
    const pieces: Piece[] = [];
    // A head tied to the embedding names the same matrices twice.
    const made = new Map<Placed, number>();
    let madeBytes = 0;
    const make = (placed: Placed): number => {
      const known = made.get(placed);
      if (known !== undefined) return known;
      const address = alignUp(madeBytes, matrixAlignment);
      const piece = pieceOf({ ...placed, address }, recipes);
      if (placed.bytes > 0) pieces.push(piece);
      madeBytes = address + placedBytes(piece);
      made.set(placed, address);
      return address;
    };
    const bindings = plan.bindings.map(({ matrices, ...binding }) => {
      const mapped = matrices.every((placed) => mappable(placed, recipes));
      return {
        ...binding,
        file: mapped ? (matrices[0]?.tensor.file ?? 0) : madeFile,
        offsets: Float64Array.from(matrices, (placed) =>
          mapped ? placed.tensor.offset + placed.offset : make(placed),
        ),
      };
    });
    return { bindings, pieces, madeBytes };
  });
}
