/** What a GGUF file says: metadata values and where each tensor's bytes lie. No knowledge of any model. */

/** ggml's type ids; the names are the ones people write in file names. */
export const GgmlType = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q5_0: 6,
  Q5_1: 7,
  Q8_0: 8,
  Q2_K: 10,
  Q3_K: 11,
  Q4_K: 12,
  Q5_K: 13,
  Q6_K: 14,
  IQ4_NL: 20,
  IQ4_XS: 23,
  BF16: 30,
} as const;
export type GgmlTypeName = keyof typeof GgmlType;

/** Elements and bytes of one block of each type (format facts: engine/quant/blocks.h has the layouts). */
export const blockShapes: Record<GgmlTypeName, { readonly elements: number; readonly bytes: number }> = {
  F32: { elements: 1, bytes: 4 },
  F16: { elements: 1, bytes: 2 },
  BF16: { elements: 1, bytes: 2 },
  Q4_0: { elements: 32, bytes: 18 },
  Q4_1: { elements: 32, bytes: 20 },
  Q5_0: { elements: 32, bytes: 22 },
  Q5_1: { elements: 32, bytes: 24 },
  Q8_0: { elements: 32, bytes: 34 },
  Q2_K: { elements: 256, bytes: 84 },
  Q3_K: { elements: 256, bytes: 110 },
  Q4_K: { elements: 256, bytes: 144 },
  Q5_K: { elements: 256, bytes: 176 },
  Q6_K: { elements: 256, bytes: 210 },
  IQ4_NL: { elements: 32, bytes: 18 },
  IQ4_XS: { elements: 256, bytes: 136 },
};

/** A metadata value. 64-bit integers beyond 2^53 stay bigint; arrays of numbers are plain arrays. */
export type GgufValue = number | bigint | boolean | string | readonly GgufScalar[];
export type GgufScalar = number | bigint | boolean | string;

export interface GgufTensor {
  readonly name: string;
  readonly type: GgmlTypeName;
  /** ggml order: shape[0] is contiguous (the input dimension of a weight matrix). */
  readonly shape: readonly number[];
  /** Index into GgufModel.files. */
  readonly file: number;
  /** Byte offset in that file, from its start. */
  readonly offset: number;
  readonly bytes: number;
}

/** One model: a file, or all the parts of a split one. */
export interface GgufModel {
  readonly files: readonly { readonly path: string; readonly bytes: number }[];
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}
