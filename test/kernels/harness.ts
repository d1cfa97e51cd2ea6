/** Runs single kernels of the engine core, in WebAssembly or native, on bytes: a door and a bump allocator. */
import { type Build, type Door, NativeDoor, nativeTables, WasmDoor } from './doors.ts';

export { type Build, buildCore } from './doors.ts';

/** Weight types by name: [ggml id, elements of a block, bytes of a block]. */
export const TYPES = {
  F32: [0, 1, 4],
  F16: [1, 1, 2],
  BF16: [30, 1, 2],
  Q4_0: [2, 32, 18],
  Q4_1: [3, 32, 20],
  Q5_0: [6, 32, 22],
  Q5_1: [7, 32, 24],
  Q8_0: [8, 32, 34],
  IQ4_NL: [20, 32, 18],
  Q2_K: [10, 256, 84],
  Q3_K: [11, 256, 110],
  Q4_K: [12, 256, 144],
  Q5_K: [13, 256, 176],
  Q6_K: [14, 256, 210],
  IQ4_XS: [23, 256, 136],
} as const;

export type TypeName = keyof typeof TYPES;
export const TYPE_NAMES = Object.keys(TYPES) as TypeName[];

/** Bytes of a weight row. */
export function rowBytes(type: TypeName, cols: number): number {
  const [, elements, bytes] = TYPES[type];
  return (cols / elements) * bytes;
}

export interface Matmul {
  readonly type: TypeName;
  readonly exact: boolean;
  /** Addresses in the instance's memory. */
  readonly w: number;
  readonly x: number;
  readonly xRows: number;
  readonly y: number;
  readonly rows: number;
  readonly cols: number;
  readonly n: number;
}

export interface Attention {
  readonly q: number;
  readonly pages: number;
  readonly lengths: number;
  readonly out: number;
  readonly scores: number;
  readonly scoreStride: number;
  readonly scale: number;
  readonly rows: number;
  readonly keyDim: number;
  readonly valueDim: number;
  readonly pageTokens: number;
  /** Whether q and the pages hold any floats, not only values of 12 bits. */
  readonly exact: boolean;
}

/** One set of kernels, alone on its memory. */
export class Core {
  readonly memory: Uint8Array<ArrayBufferLike>;
  readonly tables: readonly string[];
  readonly #door: Door;
  #top: number;

  constructor(build: Build, megabytes: number) {
    this.#door = build === 'native' ? new NativeDoor(megabytes) : new WasmDoor(build, megabytes);
    this.memory = this.#door.memory;
    this.tables = this.#door.tables;
    this.#top = this.#door.free;
  }

  /** Runs one kernel (or, with no table, one function of engine/math.h or measurement). */
  run(kernel: string, table: string | null, ...args: number[]): number {
    return this.#door.run(kernel, table, args);
  }

  /** `bytes` of memory, 64-byte aligned plus `shift`. */
  alloc(bytes: number, shift = 0): number {
    const at = this.#top + shift;
    this.#top = (at + bytes + 127) & ~63;
    if (this.#top > this.memory.byteLength) throw new Error('the test memory is full');
    return at;
  }

  /** Frees everything allocated since `mark()` gave `top`. */
  release(top: number): void {
    this.#top = top;
  }

  mark(): number {
    return this.#top;
  }

  put(data: Uint8Array<ArrayBufferLike> | Float32Array | Int32Array, shift = 0): number {
    const at = this.alloc(data.byteLength, shift);
    this.memory.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    return at;
  }

  /** A copy. */
  bytes(at: number, count: number): Uint8Array {
    return this.memory.slice(at, at + count);
  }

  /** A copy. */
  floats(at: number, count: number): Float32Array {
    return new Float32Array(this.bytes(at, count * 4).buffer);
  }

  activationRowBytes(type: TypeName, exact: boolean, cols: number): number {
    return this.run('activation_row_bytes', null, TYPES[type][0], Number(exact), cols);
  }

  /** Stores float rows as the activation rows that `type` takes; gives their address. */
  putActivations(table: string, type: TypeName, exact: boolean, x: Float32Array, cols: number): number {
    const stride = this.activationRowBytes(type, exact, cols);
    const rows = x.length / cols;
    const at = this.alloc(stride * rows);
    for (let r = 0; r < rows; r++) {
      const row = this.put(x.subarray(r * cols, (r + 1) * cols));
      const kind = exact ? 'F32' : type;
      this.run('quantize', table, TYPES[kind][0], row, cols, at + r * stride);
    }
    return at;
  }

  matmul(table: string, m: Matmul): void {
    const stride = this.activationRowBytes(m.type, m.exact, m.cols);
    const { type, exact, w, x, xRows, y, rows, cols, n } = m;
    this.run('matmul', table, TYPES[type][0], Number(exact), w, x, xRows, y, stride, rows, rows, cols, n);
  }

  attention(table: string, a: Attention): void {
    const { q, pages, lengths, out, scores, scoreStride, scale, rows, keyDim, valueDim, pageTokens, exact } = a;
    const addresses = [q, pages, lengths, out, scores];
    this.run('attention', table, ...addresses, scoreStride, scale, rows, keyDim, valueDim, pageTokens, Number(exact));
  }
}

const native = typeof nativeTables === 'string' ? [] : nativeTables;

/** Every fast table that this machine can run, and the build it is in. */
export const FAST_TABLES: readonly (readonly [Build, string])[] = [
  ['simd128', 'simd128'],
  ['relaxed', 'simd128'],
  ['relaxed', 'relaxed'],
  ...native.filter((table) => table !== 'scalar').map((table) => ['native', table] as const),
];

export const BUILDS: readonly Build[] = native.length > 0 ? ['simd128', 'relaxed', 'native'] : ['simd128', 'relaxed'];

/** Why no native table is in FAST_TABLES; null where they are. */
export const withoutNative: string | null = typeof nativeTables === 'string' ? nativeTables : null;

/** A small fast generator of numbers, the same in every run. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 32 bits. */
  next(): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
    const mixed = Math.imul(this.#state ^ (this.#state >>> 15), 0x2c1b3c6d);
    return (mixed ^ (mixed >>> 13)) >>> 0;
  }

  /** About normal: mean 0, deviation 1. */
  normal(): number {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += this.next() / 2 ** 32;
    return sum;
  }

  floats(count: number): Float32Array {
    return Float32Array.from({ length: count }, () => this.normal());
  }

  bytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => this.next() >>> 24);
  }
}

/** The half nearest to 0 at or below `value` in magnitude, for positive normal values. */
export function halfBits(value: number): number {
  const exponent = Math.floor(Math.log2(value));
  return ((exponent + 15) << 10) | Math.floor((value / 2 ** exponent - 1) * 1024);
}

const HALF_FIELDS: Partial<Record<TypeName, readonly number[]>> = {
  Q4_0: [0],
  Q4_1: [0, 2],
  Q5_0: [0],
  Q5_1: [0, 2],
  Q8_0: [0],
  IQ4_NL: [0],
  Q2_K: [80, 82],
  Q3_K: [108],
  Q4_K: [0, 2],
  Q5_K: [0, 2],
  Q6_K: [208],
  IQ4_XS: [0],
};

/**
 * Weight rows of arbitrary codes with sane halfs (random sign, 2^-8..2^-6), one after another. `fill` sets every code byte.
 */
export function randomWeights(random: Random, type: TypeName, rows: number, cols: number, fill?: number): Uint8Array {
  const [, elements, size] = TYPES[type];
  const blocks = (rows * cols) / elements;
  if (type === 'F32') return new Uint8Array(random.floats(blocks).buffer);
  const data = fill === undefined ? random.bytes(blocks * size) : new Uint8Array(blocks * size).fill(fill);
  const view = new DataView(data.buffer);
  const half = () => halfBits(2 ** (-8 + (2 * random.next()) / 2 ** 32)) | (random.next() & 0x8000);
  for (let b = 0; b < blocks; b++) {
    if (type === 'F16') view.setUint16(2 * b, half(), true);
    else if (type === 'BF16') view.setUint16(2 * b, (half() & 0x80ff) | 0x3c00, true);
    else for (const at of HALF_FIELDS[type] ?? []) view.setUint16(size * b + at, half(), true);
  }
  return data;
}
