/** Tells the engine where everything is: matrix locations per rank, and the float vectors in the state memory. */
import type { CoreExports } from '../../wasm/core.ts';
import { GgmlType, type GgufTensor } from '../gguf/types.ts';
import { matrixSlots } from '../model/plan.ts';
import { fillSynthetic } from '../model/synthetic-blocks.ts';
import type { ModelTensors } from '../model/tensors.ts';
import { locationBytes, vectorSlots } from './layout.ts';
import { type OpenFile, readFully, withFiles } from './model-files.ts';
import type { PlacedRank, Recipes } from './place.ts';

/** Binds every matrix of every rank. */
export function bindRanks(
  core: CoreExports,
  memory: WebAssembly.Memory,
  engine: number,
  ranks: readonly PlacedRank[],
): void {
  const view = new DataView(memory.buffer);
  ranks.forEach(({ bindings }, rank) => {
    for (const { slot, layer, type, rowBegin, rows, columns, matrices } of bindings) {
      const at = core.engine_bind(
        engine,
        rank,
        matrixSlots.indexOf(slot),
        layer,
        GgmlType[type],
        rowBegin,
        rows,
        columns,
        matrices.length,
      );
      if (at === 0)
        throw new Error(
          `engine_bind refused ${slot} of layer ${layer}, rank ${rank}: ${type} ${rows} x ${columns} x ${matrices.length}`,
        );
      matrices.forEach(({ address, shard }, index) => {
        view.setBigUint64(at + index * locationBytes, BigInt(address), true);
        view.setUint32(at + index * locationBytes + 8, shard, true);
      });
    }
  });
}

interface VectorSource {
  readonly tensors: ModelTensors;
  readonly files: readonly string[];
  readonly recipes: Recipes;
}

/** Writes a vector's floats into its place; false when the engine has none of this length there. */
export type SetVector = (
  slot: (typeof vectorSlots)[number],
  layer: number,
  tensor: GgufTensor,
  raw: Uint8Array,
) => boolean;

/** Reads every norm and bias and hands it to `set`. */
export async function fillVectors({ tensors, files, recipes }: VectorSource, set: SetVector): Promise<void> {
  await withFiles(files, async (opened) => {
    const fill = async (slot: (typeof vectorSlots)[number], layer: number, tensor: GgufTensor): Promise<void> => {
      const recipe = recipes?.get(tensor.name);
      const raw = new Uint8Array(tensor.bytes);
      if (recipe) fillSynthetic(recipe, 0, raw);
      else await readFully(opened[tensor.file] as OpenFile, raw, tensor.offset);
      if (!set(slot, layer, tensor, raw)) throw new Error(`the engine refused ${slot} of layer ${layer}`);
    };
    await fill('output_norm', 0, tensors.output_norm);
    for (const [index, layer] of tensors.layers.entries()) {
      for (const slot of vectorSlots) {
        const tensor = slot === 'output_norm' ? undefined : layer[slot];
        if (tensor) await fill(slot, index, tensor);
      }
    }
  });
}

/** Puts vectors into a state memory, by way of `scratch`, which holds the longest. */
export function vectorsInto(core: CoreExports, memory: WebAssembly.Memory, engine: number, scratch: number): SetVector {
  return (slot, layer, tensor, raw) => {
    const at = core.engine_vector(engine, vectorSlots.indexOf(slot), layer, scratch);
    const length = new DataView(memory.buffer).getUint32(scratch, true);
    if (at === 0 || tensor.shape[0] !== length) return false;
    new Uint8Array(memory.buffer).set(raw, scratch);
    core.dequantize_rows(GgmlType[tensor.type], scratch, 1, length, at);
    return true;
  };
}
