import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { convertCheckpoint } from '../../src/convert/convert.ts';
import { fp8Values } from '../../src/convert/decode.ts';
import { halfBits } from '../../src/gguf/half.ts';
import { coreInstance } from './core.ts';
import {
  elements,
  f32,
  openOutput,
  randomFloats,
  type StoredTensor,
  smallConfig,
  smallTensors,
  type Tensors,
  temporary,
  valuesOf,
  writeCheckpoint,
} from './support.ts';

const core = coreInstance();
let outputs = 0;

async function convert(tensors: Tensors, type: 'f32' | 'q4_0', config: object = smallConfig) {
  const path = join(temporary, `sources-${outputs++}.gguf`);
  const result = await convertCheckpoint(await writeCheckpoint(config, tensors), path, { type });
  return { result, ...(await openOutput(path)) };
}

function shortened(shape: readonly number[], dtype: 'BF16' | 'F16'): StoredTensor {
  const values = randomFloats(elements(shape));
  const bits = new Uint32Array(values.buffer);
  const halves = Uint16Array.from(values, (value, i) =>
    dtype === 'F16' ? halfBits(value) : (bits[i] as number) >>> 16,
  );
  return { dtype, shape, bytes: new Uint8Array(halves.buffer) };
}

describe('16-bit checkpoints', () => {
  it.each(['BF16', 'F16'] as const)('convert to F32 exactly: %s', async (dtype) => {
    const tensors = smallTensors();
    const stored = shortened([144, 64], dtype);
    tensors['model.layers.0.self_attn.q_b_proj.weight'] = stored;
    const { bytes } = await convert(tensors, 'f32');
    expect(new Float32Array(bytes('blk.0.attn_q_b.weight'))).toEqual(core.decode(dtype, stored.bytes, 64));
  });
});

describe('block-fp8 checkpoints', () => {
  /** Replaces a tensor by fp8 with a scale per `block`, and returns the numbers it then stands for. */
  function store(
    tensors: Tensors,
    name: string,
    block: readonly [number, number],
  ): (row: number, column: number) => number {
    const [rows, columns] = (tensors[name] as StoredTensor).shape as [number, number];
    const bytes = Uint8Array.from(
      { length: rows * columns },
      (_, i) => ((i * 73 + (i >> 5)) % 0x7f) | ((i & 3) === 0 ? 0x80 : 0),
    );
    const perRow = Math.ceil(columns / block[1]);
    const scales = randomFloats(Math.ceil(rows / block[0]) * perRow);
    tensors[name] = { dtype: 'F8_E4M3', shape: [rows, columns], bytes };
    tensors[`${name}_scale_inv`] = f32([Math.ceil(rows / block[0]), perRow], scales);
    return (row, column) => {
      const scale = scales[Math.floor(row / block[0]) * perRow + Math.floor(column / block[1])] as number;
      return Math.fround((fp8Values[bytes[row * columns + column] as number] as number) * scale);
    };
  }

  it.each([
    [[128, 128], {}],
    [[32, 64], { quantization_config: { quant_method: 'fp8', weight_block_size: [32, 64] } }],
  ] as const)('multiply by the scale of each block of %j', async (block, config) => {
    const tensors = smallTensors();
    const a = store(tensors, 'model.layers.0.self_attn.kv_a_proj_with_mqa.weight', block);
    const b = store(tensors, 'model.layers.1.self_attn.kv_b_proj.weight', block);
    const down = store(tensors, 'model.layers.1.mlp.experts.2.down_proj.weight', block);
    const { bytes } = await convert(tensors, 'f32', { ...smallConfig, ...config });
    const found = (name: string) => new Float32Array(bytes(name));
    found('blk.0.attn_kv_a_mqa.weight').forEach((value, i) => {
      expect(value).toBe(a(Math.floor(i / 96), i % 96));
    });
    // attn_k_b [nope 32, latent 96, heads 3] from rows of heads of 32 + 64.
    found('blk.1.attn_k_b.weight').forEach((value, i) => {
      const head = Math.floor(i / (32 * 96));
      expect(value).toBe(b(head * 96 + (i % 32), Math.floor(i / 32) % 96));
    });
    const expert = found('blk.1.ffn_down_exps.weight').subarray(2 * 96 * 64, 3 * 96 * 64);
    expert.forEach((value, i) => {
      expect(value).toBe(down(Math.floor(i / 64), i % 64));
    });
  });
});

describe('INT4 pack-quantized checkpoints', () => {
  const names = [0, 1, 2, 3].map((expert) => `model.layers.1.mlp.experts.${expert}.gate_proj.weight`);

  /** Packs every gate expert with random codes; returns the codes' values, [expert][row * 96 + column]. */
  function pack(tensors: Tensors, scaleDtype: 'F32' | 'BF16', scaleOf: (group: number) => number): Float32Array[] {
    return names.map((name, expert) => {
      delete tensors[name];
      const codes = Uint8Array.from({ length: 64 * 96 }, (_, i) => (i * 11 + expert * 5 + (i >> 4)) & 15);
      const packed = Uint8Array.from(
        { length: codes.length / 2 },
        (_, i) => (codes[2 * i] as number) | ((codes[2 * i + 1] as number) << 4),
      );
      const scales = Float32Array.from({ length: 64 * 3 }, (_, group) => scaleOf(group + expert));
      const bits = Uint16Array.from(new Uint32Array(scales.buffer), (word) => word >>> 16);
      tensors[`${name}_packed`] = { dtype: 'I32', shape: [64, 12], bytes: packed };
      tensors[`${name}_scale`] =
        scaleDtype === 'F32'
          ? f32([64, 3], scales)
          : { dtype: 'BF16', shape: [64, 3], bytes: new Uint8Array(bits.buffer) };
      tensors[`${name}_shape`] = {
        dtype: 'I64',
        shape: [2],
        bytes: new Uint8Array(new BigInt64Array([64n, 96n]).buffer),
      };
      return Float32Array.from(codes, (code, i) => (code - 8) * (scales[Math.floor(i / 32)] as number));
    });
  }

  it('become Q4_0 with every weight equal', async () => {
    const tensors = smallTensors();
    const expected = pack(tensors, 'BF16', (group) => ((group % 7) + 1) / 512);
    const { result, model, bytes } = await convert(tensors, 'q4_0');
    expect(model.tensors.get('blk.1.ffn_gate_exps.weight')?.type).toBe('Q4_0');
    const found = core.decode('Q4_0', new Uint8Array(bytes('blk.1.ffn_gate_exps.weight')), 96);
    expect([...found]).toEqual(expected.flatMap((values) => [...values]));
    expect(result.notes.join()).not.toContain('rounded');
  });

  it('say how many scales Q4_0 had to round', async () => {
    const tensors = smallTensors();
    pack(tensors, 'F32', (group) => (group % 4 === 0 ? 0.1 : 0.125));
    const { result } = await convert(tensors, 'q4_0');
    expect(result.notes).toContainEqual(expect.stringMatching(/^192 INT4 scales were rounded/));
  });

  it('are dequantized for other types', async () => {
    const tensors = smallTensors();
    const expected = pack(tensors, 'F32', (group) => 0.01 * group + 0.001);
    const { bytes } = await convert(tensors, 'f32');
    const found = new Float32Array(bytes('blk.1.ffn_gate_exps.weight'));
    expect([...found]).toEqual(expected.flatMap((values) => [...values]));
    expect(new Float32Array(bytes('blk.0.ffn_gate.weight'))).toEqual(
      valuesOf(tensors, 'model.layers.0.mlp.gate_proj.weight'),
    );
  });
});
