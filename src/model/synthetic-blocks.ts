/**
 * Random weight bytes without weights: valid blocks of every type whose values have mean 0 (or `mean`) and a chosen spread.
 * A pattern of about 1 MiB is made once per type and spread and then copied, each copy rotated by an amount that depends
 * on its place, so that rows differ, and so that any piece of a tensor can be filled alone and comes out the same.
 */
import { halfBits } from '../gguf/half.ts';
import { blockShapes, type GgmlTypeName } from '../gguf/types.ts';

export interface SyntheticRecipe {
  readonly type: GgmlTypeName;
  /** Mean of the values; other than 0 for norms, which are floats. */
  readonly mean: number;
  /** Standard deviation of the values. */
  readonly sigma: number;
  /** Distinguishes tensors: how the pattern is rotated. */
  readonly seed: number;
}

/** About an L2 cache, and more than all rows of the small shapes together, so that none of them repeats another. */
const patternBytes = 1 << 20;

type ScalarType = 'F32' | 'F16' | 'BF16';

const patterns = new Map<string, Uint8Array>();

/** Marsaglia's xorshift32; any nonzero state. */
class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = mix(seed) || 1;
  }

  /** An integer in [0, 2^32). */
  bits(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return x >>> 0;
  }

  /** In [0, 1). */
  unit(): number {
    return this.bits() / 2 ** 32;
  }

  /** An integer in [from, to). */
  integer(from: number, to: number): number {
    return from + Math.floor(this.unit() * (to - from));
  }

  /** Standard normal (Box-Muller). */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.unit())) * Math.cos(2 * Math.PI * this.unit());
  }

  bytes(target: Uint8Array): void {
    for (let i = 0; i < target.length; i++) target[i] = this.bits() >>> 24;
  }
}

/** A hash of 32 bits to 32 bits (the finalizer of MurmurHash3). */
function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Writes one random block; `view` covers exactly its bytes, which are random already. */
type BlockMaker = (random: Random, view: DataView, recipe: SyntheticRecipe) => void;

/** A scale whose blocks come out with standard deviation `sigma`, varied by 20 % between blocks. */
function scale(random: Random, sigma: number, spread: number): number {
  return (sigma / spread) * (1 + 0.2 * (2 * random.unit() - 1));
}

/** As `scale`, with either sign: for types whose integers have a mean other than 0. */
function signedScale(random: Random, sigma: number, spread: number): number {
  return scale(random, sigma, spread) * (random.unit() < 0.5 ? -1 : 1);
}

function putHalf(view: DataView, at: number, value: number): void {
  view.setUint16(at, halfBits(value), true);
}

/** Scale and minimum of the types whose values are d*q + m, m such that the middle of q's range means 0. */
function scaleAndMinimum(spread: number, middle: number): BlockMaker {
  return (random, view, recipe) => {
    const d = scale(random, recipe.sigma, spread);
    putHalf(view, 0, d);
    putHalf(view, 2, -d * middle);
  };
}

/** Q4_K and Q5_K: eight 6-bit scales, equal to the minima, so that the middle of the range means 0 in each sub-block. */
function superScales(spread: number, middle: number): BlockMaker {
  return (random, view, recipe) => {
    const d = scale(random, recipe.sigma, spread * 44.5);
    putHalf(view, 0, d);
    putHalf(view, 2, d * middle);
    for (let i = 0; i < 4; i++) {
      const low = random.integer(24, 64);
      const high = random.integer(24, 64);
      const packed = low | ((high >> 4) << 6);
      view.setUint8(4 + i, packed);
      view.setUint8(8 + i, packed);
      view.setUint8(12 + i, (high & 15) | ((high & 15) << 4));
    }
  };
}

/** Standard deviations of the quantized integers when all bits are random; layouts as in engine/quant/blocks.h. */
const makers: Record<Exclude<GgmlTypeName, ScalarType>, BlockMaker> = {
  Q8_0: (random, view, recipe) => {
    putHalf(view, 0, scale(random, recipe.sigma, 73.6));
    for (let i = 2; i < 34; i++) if (view.getInt8(i) === -128) view.setInt8(i, 127);
  },
  Q4_0: (random, view, recipe) => {
    putHalf(view, 0, scale(random, recipe.sigma, 4.32));
    for (let i = 2; i < 18; i++) {
      // The nibble 0 means -8, which has no counterpart; as 8, which means 0, it leaves the mean at 0.
      const byte = view.getUint8(i);
      view.setUint8(i, (byte & 15 || 8) | ((byte >> 4 || 8) << 4));
    }
  },
  Q4_1: scaleAndMinimum(4.61, 7.5),
  Q5_0: (random, view, recipe) => putHalf(view, 0, signedScale(random, recipe.sigma, 9.23)),
  Q5_1: scaleAndMinimum(9.23, 15.5),
  Q2_K: (random, view, recipe) => {
    // Scale and minimum nibbles are equal, and dmin is 1.5 d: the middle of 0..3 means 0.
    for (let i = 0; i < 16; i++) view.setUint8(i, random.integer(5, 16) * 0x11);
    const d = scale(random, recipe.sigma, 1.12 * 10.5);
    putHalf(view, 80, d);
    putHalf(view, 82, 1.5 * d);
  },
  Q3_K: (random, view, recipe) => putHalf(view, 108, scale(random, recipe.sigma, 2.3 * 18.5)),
  Q4_K: superScales(4.61, 7.5),
  Q5_K: superScales(9.23, 15.5),
  Q6_K: (random, view, recipe) => {
    for (let i = 192; i < 208; i++) view.setInt8(i, random.integer(40, 128) * (random.unit() < 0.5 ? -1 : 1));
    putHalf(view, 208, scale(random, recipe.sigma, 18.5 * 87));
  },
  IQ4_NL: (random, view, recipe) => putHalf(view, 0, signedScale(random, recipe.sigma, 69.7)),
  IQ4_XS: (random, view, recipe) => putHalf(view, 0, scale(random, recipe.sigma, 69.7 * 18.5)),
};

let normals: Float32Array | undefined;

/** Standard normal numbers, made once: every float pattern is these, moved and stretched. */
function standardNormals(): Float32Array {
  const random = new Random(1);
  normals ??= Float32Array.from({ length: patternBytes / 4 }, () => random.normal());
  return normals;
}

function makeScalars(type: ScalarType, recipe: SyntheticRecipe): Uint8Array {
  const floats = standardNormals().map((normal) => recipe.mean + recipe.sigma * normal);
  if (type === 'F32') return new Uint8Array(floats.buffer);
  const bits = new Uint32Array(floats.buffer);
  const short = new Uint16Array(floats.length);
  for (let i = 0; i < short.length; i++) short[i] = type === 'F16' ? halfBits(floats[i] ?? 0) : (bits[i] ?? 0) >>> 16;
  return new Uint8Array(short.buffer);
}

function makePattern(recipe: SyntheticRecipe): Uint8Array {
  const { type } = recipe;
  if (type === 'F32' || type === 'F16' || type === 'BF16') return makeScalars(type, recipe);
  const { bytes } = blockShapes[type];
  const blocks = Math.floor(patternBytes / bytes);
  const pattern = new Uint8Array(blocks * bytes);
  const random = new Random(type.length * 0x9e3779b1 + bytes);
  random.bytes(pattern);
  for (let at = 0; at < pattern.length; at += bytes) {
    makers[type](random, new DataView(pattern.buffer, at, bytes), recipe);
  }
  return pattern;
}

function patternOf(recipe: SyntheticRecipe): Uint8Array {
  const key = `${recipe.type} ${recipe.mean} ${recipe.sigma}`;
  const pattern = patterns.get(key) ?? makePattern(recipe);
  patterns.set(key, pattern);
  return pattern;
}

/** Fills `target` with the bytes of a synthetic tensor from byte `offset`; both are multiples of the type's block. */
export function fillSynthetic(recipe: SyntheticRecipe, offset: number, target: Uint8Array): void {
  const pattern = patternOf(recipe);
  const block = blockShapes[recipe.type].bytes;
  const size = pattern.length;
  for (let done = 0; done < target.length; ) {
    const copy = Math.floor((offset + done) / size);
    const within = (offset + done) % size;
    const rotation = (mix(mix(recipe.seed) + copy) % (size / block)) * block;
    const from = (within + rotation) % size;
    const length = Math.min(size - from, size - within, target.length - done);
    target.set(pattern.subarray(from, from + length), done);
    done += length;
  }
}
