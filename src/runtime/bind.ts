/** Tells the engine where everything is: matrix locations per rank, and the float vectors in the state memory. */
import type { CoreExports } from '../../wasm/core.ts';
import { type OpenFile, readFully, withFiles } from '../../wasm/model-files.ts';
import { GgmlType, type GgufTensor } from '../gguf/types.ts';
import { matrixSlots } from '../model/plan.ts';
import { fillSynthetic } from '../model/synthetic-blocks.ts';
import type { ModelTensors } from '../model/tensors.ts';
import { locationBytes, vectorSlots } from './layout.ts';
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

/** Reads every norm and bias into its place as float32. */
export async function fillVectors(
  core: CoreExports,
  memory: WebAssembly.Memory,
  engine: number,
  { tensors, files, recipes }: VectorSource,
  scratch: number,
): Promise<void> {
  const bytes = new Uint8Array(memory.buffer);
  await withFiles(files, async (opened) => {
    const fill = async (slot: (typeof vectorSlots)[number], layer: number, tensor: GgufTensor): Promise<void> => {
      const at = core.engine_vector(engine, vectorSlots.indexOf(slot), layer, scratch);
      const length = new DataView(memory.buffer).getUint32(scratch, true);
      if (at === 0 || tensor.shape[0] !== length) throw new Error(`engine_vector refused ${slot} of layer ${layer}`);
      const recipe = recipes?.get(tensor.name);
      const raw = bytes.subarray(scratch, scratch + tensor.bytes);
      if (recipe) fillSynthetic(recipe, 0, raw);
      else await readFully(opened[tensor.file] as OpenFile, raw, tensor.offset);
      core.dequantize_rows(GgmlType[tensor.type], scratch, 1, length, at);
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
