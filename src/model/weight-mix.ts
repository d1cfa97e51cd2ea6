/** Which type each tensor of a converted or synthetic model has: llama.cpp's habits for each kind of file, by slot. */
import { blockShapes, type GgmlTypeName } from '../gguf/types.ts';
import type { SlotSpec } from './tensors.ts';

/** The type most matrices get, and the number general.file_type carries. */
const mixes = {
  f32: { base: 'F32', fileType: 0 },
  f16: { base: 'F16', fileType: 1 },
  bf16: { base: 'BF16', fileType: 32 },
  q8_0: { base: 'Q8_0', fileType: 7 },
  q4_0: { base: 'Q4_0', fileType: 2 },
  q4_1: { base: 'Q4_1', fileType: 3 },
  q5_0: { base: 'Q5_0', fileType: 8 },
  q5_1: { base: 'Q5_1', fileType: 9 },
  q2_k: { base: 'Q2_K', fileType: 10 },
  q3_k: { base: 'Q3_K', fileType: 12 },
  q4_k_m: { base: 'Q4_K', fileType: 15 },
  q5_k_m: { base: 'Q5_K', fileType: 17 },
  q5_k: { base: 'Q5_K', fileType: 17 },
  q6_k: { base: 'Q6_K', fileType: 18 },
  iq4_nl: { base: 'IQ4_NL', fileType: 25 },
  iq4_xs: { base: 'IQ4_XS', fileType: 30 },
} as const satisfies Record<string, { base: GgmlTypeName; fileType: number }>;

export type WeightMix = keyof typeof mixes;
export const weightMixes = Object.keys(mixes) as readonly WeightMix[];

export function mixFileType(mix: WeightMix): number {
  return mixes[mix].fileType;
}

/** What rows that are not a multiple of 256 get instead (attn_k_b's rows of 128, V2-Lite's expert rows of 1408). */
const shortRows: Partial<Record<GgmlTypeName, GgmlTypeName>> = {
  Q2_K: 'Q4_0',
  Q3_K: 'Q4_0',
  Q4_K: 'Q5_0',
  Q5_K: 'Q5_1',
  Q6_K: 'Q8_0',
  IQ4_XS: 'IQ4_NL',
};

/** Q4_K_M and Q5_K_M give Q6_K to the down projections of the first and last eighth of the layers and every third between. */
function getsMoreBits(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
}

/** The type of one tensor; `layer` is 0 for those outside the layers. */
export function mixType(mix: WeightMix, spec: SlotSpec, layer: number, layers: number): GgmlTypeName {
  if (spec.vector || spec.slot === 'ffn_gate_inp') return 'F32';
  const base = mixes[mix].base;
  const wanted = wantedType(mix, base, spec, getsMoreBits(layer, layers));
  const fits = (type: GgmlTypeName) => (spec.shape[0] ?? 0) % blockShapes[type].elements === 0;
  const short = shortRows[wanted];
  if (fits(wanted)) return wanted;
  return short !== undefined && fits(short) ? short : 'F16';
}

function wantedType(mix: WeightMix, base: GgmlTypeName, spec: SlotSpec, moreBits: boolean): GgmlTypeName {
  const quantized = blockShapes[base].elements > 1;
  if (spec.slot === 'output' && quantized && base !== 'Q8_0') return 'Q6_K';
  const generous = spec.slot.startsWith('ffn_down') || spec.slot === 'attn_kv_b';
  const mixed = mix === 'q4_k_m' || mix === 'q5_k_m';
  return mixed && generous && moreBits ? 'Q6_K' : base;
}
