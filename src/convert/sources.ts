/** From a planned source (some rows of a named tensor) to where its bytes are and how they are encoded. */
import { perigeeError } from '../errors.ts';
import type { ScalarDtype } from './decode.ts';
import type { HfConfig } from './hf-config.ts';
import type { SourceRows } from './names.ts';
import type { SourceTensor } from './safetensors.ts';

/** A matrix in a checkpoint file, as plain data for a worker. */
export type SourceMatrix = PlainMatrix | Fp8Matrix | Int4Matrix;

interface Place {
  readonly file: string;
  readonly offset: number;
}

interface PlainMatrix extends Place {
  readonly encoding: 'plain';
  readonly dtype: ScalarDtype;
  readonly columns: number;
}

interface Fp8Matrix extends Place {
  readonly encoding: 'fp8';
  readonly columns: number;
  readonly rows: number;
  readonly block: readonly [number, number];
  readonly scales: Place & { readonly dtype: ScalarDtype };
}

interface Int4Matrix extends Place {
  readonly encoding: 'int4';
  readonly columns: number;
  readonly group: number;
  readonly scales: Place & { readonly dtype: ScalarDtype };
}

const supported = 'F32, F16, BF16, F8_E4M3 with weight_scale_inv, and INT4 pack-quantized';

/** Finds tensors in a checkpoint's table and remembers which were used. */
export class SourceTable {
  readonly #folder: string;
  readonly #config: HfConfig;
  readonly #table: ReadonlyMap<string, SourceTensor>;
  readonly #unused: Set<string>;

  constructor(folder: string, config: HfConfig, table: ReadonlyMap<string, SourceTensor>) {
    this.#folder = folder;
    this.#config = config;
    this.#table = table;
    this.#unused = new Set(table.keys());
  }

  /** Names nobody asked for yet. */
  get unused(): ReadonlySet<string> {
    return this.#unused;
  }

  has(name: string): boolean {
    return this.#table.has(name);
  }

  matrix(source: SourceRows): SourceMatrix {
    const packed = source.tensor.replace(/weight$/, 'weight_packed');
    if (packed !== source.tensor && this.#table.has(packed)) return this.#int4(source, packed);
    const tensor = this.#take(source.tensor, source.shape);
    if (tensor.dtype === 'F8_E4M3' && source.shape.length === 2) return this.#fp8(source, tensor);
    const place = { file: tensor.file, offset: tensor.offset };
    return { encoding: 'plain', dtype: scalar(tensor), columns: source.shape.at(-1) ?? 0, ...place };
  }

  #fp8(source: SourceRows, tensor: SourceTensor): Fp8Matrix {
    const [rows, columns] = source.shape as [number, number];
    const block = this.#config.fp8Block;
    const scaleShape = [Math.ceil(rows / block[0]), Math.ceil(columns / block[1])];
    const scales = this.#take(`${source.tensor}_scale_inv`, scaleShape);
    return {
      encoding: 'fp8',
      file: tensor.file,
      offset: tensor.offset,
      rows,
      columns,
      block,
      scales: { file: scales.file, offset: scales.offset, dtype: scalar(scales) },
    };
  }

  #int4(source: SourceRows, packedName: string): Int4Matrix {
    const [rows, columns] = source.shape as [number, number];
    const packed = this.#take(packedName, [rows, columns / 8]);
    if (packed.dtype !== 'I32')
      throw perigeeError('CONVERT_DTYPE', { tensor: packed.name, dtype: packed.dtype, supported });
    const scaleName = `${source.tensor}_scale`;
    const groups = this.#table.get(scaleName)?.shape[1] ?? 1;
    const scales = this.#take(scaleName, [rows, groups]);
    this.#unused.delete(`${source.tensor}_shape`);
    return {
      encoding: 'int4',
      file: packed.file,
      offset: packed.offset,
      columns,
      group: columns / groups,
      scales: { file: scales.file, offset: scales.offset, dtype: scalar(scales) },
    };
  }

  #take(name: string, shape: readonly number[]): SourceTensor {
    const tensor = this.#table.get(name);
    if (tensor === undefined) throw perigeeError('CONVERT_TENSOR_MISSING', { folder: this.#folder, tensor: name });
    if (tensor.shape.join() !== shape.join()) {
      throw perigeeError('CONVERT_TENSOR_SHAPE', {
        tensor: name,
        found: tensor.shape.join(', '),
        expected: shape.join(', '),
      });
    }
    this.#unused.delete(name);
    return tensor;
  }
}

function scalar(tensor: SourceTensor): ScalarDtype {
  if (tensor.dtype === 'F32' || tensor.dtype === 'F16' || tensor.dtype === 'BF16') return tensor.dtype;
  throw perigeeError('CONVERT_DTYPE', { tensor: tensor.name, dtype: tensor.dtype, supported });
}
