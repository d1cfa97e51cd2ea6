/** What routers add to their scores before they choose: taps hold the scores without it. */
import type { GgufModel, GgufTensor } from '../gguf/types.ts';
import type { ModelConfig } from '../model/config.ts';
import { modelTensors } from '../model/tensors.ts';
import { readFully, withFiles } from '../runtime/model-files.ts';

/** The bias of each layer that has one, [experts]. Kept as F32 by every converter; another type gives none, and no ties. */
export async function routerBiases(gguf: GgufModel, config: ModelConfig): Promise<ReadonlyMap<number, Float32Array>> {
  const biases = new Map<number, Float32Array>();
  const tensors = modelTensors(gguf, config).layers.map((layer) => layer.exp_probs_b);
  const wanted = [...tensors.entries()].filter((entry): entry is [number, GgufTensor] => entry[1]?.type === 'F32');
  await withFiles(
    gguf.files.map(({ path }) => path),
    async (files) => {
      for (const [layer, { file, offset, bytes }] of wanted) {
        const raw = new Uint8Array(bytes);
        await readFully(files[file]!, raw, offset);
        biases.set(layer, new Float32Array(raw.buffer));
      }
    },
  );
  return biases;
}
