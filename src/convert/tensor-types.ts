/**
 * Which GGUF type each tensor gets: the choices llama.cpp's quantizer makes for this architecture without an importance
 * matrix, so that a file has the size and accuracy its name promises there.
 */
import { perigeeError } from '../errors.ts';
import { blockShapes, type GgmlTypeName } from '../gguf/types.ts';

/** For each --type: the type most matrices get and the number general.file_type carries. */
const targets = {
  f32: { base: 'F32', fileType: 0 },
  f16: { base: 'F16', fileType: 1 },
  bf16: { base: 'BF16', fileType: 32 },
  q8_0: { base: 'Q8_0', fileType: 7 },
  q4_0: { base: 'Q4_0', fileType: 2 },
  q4_k_m: { base: 'Q4_K', fileType: 15 },
  q5_k_m: { base: 'Q5_K', fileType: 17 },
  q6_k: { base: 'Q6_K', fileType: 18 },
} as const satisfies Record<string, { base: GgmlTypeName; fileType: number }>;

export type ConvertType = keyof typeof targets;
export const convertTypes = Object.keys(targets) as readonly ConvertType[];

/** Reads the --type option. */
export function parseConvertType(text: string): ConvertType {
  const type = text.toLowerCase();
  if (type in targets) return type as ConvertType;
  throw perigeeError('CONVERT_TYPE', { type: text, known: convertTypes.join(', ') });
}

export function fileTypeNumber(target: ConvertType): number {
  return targets[target].fileType;
}

/** What rows that do not fill superblocks of 256 get instead. */
const narrowRows: Partial<Record<GgmlTypeName, GgmlTypeName>> = { Q4_K: 'Q5_0', Q5_K: 'Q5_1', Q6_K: 'Q8_0' };

/**
 * The type of tensor `name` of `shape` (ggml order) in a model of `layers` layers. `head` marks the matrix that makes the
 * logits: output.weight, or token_embd.weight where both are one.
 */
export function chooseTensorType(
  target: ConvertType,
  name: string,
  shape: readonly number[],
  layers: number,
  head: boolean,
): GgmlTypeName {
  if (shape.length === 1 || name.endsWith('ffn_gate_inp.weight')) return 'F32';
  return fitRows(wantedType(target, name, layers, head), shape[0] ?? 0);
}

function wantedType(target: ConvertType, name: string, layers: number, head: boolean): GgmlTypeName {
  const base = targets[target].base;
  const quantized = blockShapes[base].elements > 1;
  if (head && quantized && base !== 'Q8_0') return 'Q6_K';
  if (base !== 'Q4_K' && base !== 'Q5_K') return base;
  const layer = /^blk\.(\d+)\.ffn_down/.exec(name)?.[1];
  return layer !== undefined && getsMoreBits(Number(layer), layers) ? 'Q6_K' : base;
}

/** Down projections of the first and last eighth of the layers, and of every third between, are worth two more bits. */
function getsMoreBits(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
}

function fitRows(type: GgmlTypeName, columns: number): GgmlTypeName {
  const fits = (candidate: GgmlTypeName) => columns % blockShapes[candidate].elements === 0;
  if (fits(type)) return type;
  const narrow = narrowRows[type];
  return narrow !== undefined && fits(narrow) ? narrow : 'F16';
}
