/** Two ways to single kernels on bytes: an instance of build/core-*.wasm, and the addon build/native/probe.node. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const STACK_BYTES = 1 << 20;

export type Build = 'simd128' | 'relaxed' | 'native';

/** Kernels, and the memory they work on. Addresses are offsets in it. */
export interface Door {
  readonly memory: Uint8Array<ArrayBufferLike>;
  /** From here on the memory is the caller's. */
  readonly free: number;
  readonly tables: readonly string[];
  /** Runs one kernel of a table; structs (matmul, attention) are given field by field. Mathematics takes no table. */
  run(kernel: string, table: string | null, args: readonly number[]): number;
}

type Export = (...args: number[]) => number;

export class WasmDoor implements Door {
  readonly memory: Uint8Array<SharedArrayBuffer>;
  readonly free: number;
  readonly #exports: Record<string, Export>;
  readonly #tables: ReadonlyMap<string, number>;
  /** Room for a kernel's struct. */
  readonly #struct: number;

  constructor(build: Exclude<Build, 'native'>, megabytes: number) {
    const module = new WebAssembly.Module(readFileSync(`${root}/build/core-${build}.wasm`));
    const memory = new WebAssembly.Memory({ initial: megabytes * 16, maximum: 65536, shared: true });
    const imports: Record<string, Record<string, unknown>> = { env: { memory } };
    for (const { module: from, name, kind } of WebAssembly.Module.imports(module))
      if (kind === 'function') imports[from] = { ...imports[from], [name]: () => 0 };
    const { exports } = new WebAssembly.Instance(module, imports as WebAssembly.Imports);
    this.#exports = exports as Record<string, Export>;
    this.memory = new Uint8Array(memory.buffer as SharedArrayBuffer);
    const stack = (this.#call('heap_base') + 63) & ~63;
    this.#struct = stack + STACK_BYTES;
    (exports.__stack_pointer as WebAssembly.Global).value = this.#struct;
    this.free = this.#struct + 64;
    this.#tables = new Map(this.#named());
  }

  get tables(): readonly string[] {
    return [...this.#tables.keys()];
  }

  run(kernel: string, table: string | null, args: readonly number[]): number {
    if (table === null) return this.#call(`probe_${kernel}`, ...args);
    const handle = this.#tables.get(table);
    if (handle === undefined) throw new Error(`no kernel table ${table} in this build`);
    if (kernel === 'matmul')
      return this.#call('probe_matmul', handle, ...args.slice(0, 2), this.#fields(args.slice(2)));
    if (kernel === 'attention') return this.#call('probe_attention', handle, this.#fields(args, 6));
    return this.#call(`probe_${kernel}`, handle, ...args);
  }

  /** Writes 32-bit fields; the one at `float` is a float. */
  #fields(values: readonly number[], float = -1): number {
    const view = new DataView(this.memory.buffer, this.#struct, 64);
    for (const [i, v] of values.entries()) {
      if (i === float) view.setFloat32(4 * i, v, true);
      else view.setUint32(4 * i, v, true);
    }
    return this.#struct;
  }

  #call(name: string, ...args: number[]): number {
    const fn = this.#exports[name];
    if (fn === undefined) throw new Error(`${name} is not exported`);
    return fn(...args);
  }

  *#named(): Generator<[string, number]> {
    for (let i = 0; ; i++) {
      const at = this.#call('isa_name', i);
      if (at === 0) return;
      const bytes = this.memory.slice(at, at + 16);
      yield [new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0))), this.#call('isa_kernels', i)];
    }
  }
}

interface Probe {
  readonly tables: readonly string[];
  call(buffer: ArrayBuffer, kernel: string, table: number, ...args: number[]): number;
}

/** The addon, or why there is none. */
function loadProbe(): Probe | string {
  try {
    return createRequire(import.meta.url)(`${root}/build/native/probe.node`);
  } catch (error) {
    return `build/native/probe.node does not load (make native): ${(error as Error).message.split('\n')[0]}`;
  }
}

const probe = loadProbe();

/** The native tables this CPU runs, or the reason why none can be tried. */
export const nativeTables: readonly string[] | string = typeof probe === 'string' ? probe : probe.tables;

export class NativeDoor implements Door {
  readonly memory: Uint8Array<ArrayBuffer>;
  readonly free = 64; // offset 0 is null
  readonly tables: readonly string[];
  readonly #probe: Probe;

  constructor(megabytes: number) {
    if (typeof probe === 'string') throw new Error(probe);
    this.#probe = probe;
    this.tables = probe.tables;
    this.memory = new Uint8Array(megabytes << 20);
  }

  run(kernel: string, table: string | null, args: readonly number[]): number {
    const index = table === null ? 0 : this.tables.indexOf(table);
    return this.#probe.call(this.memory.buffer, kernel, index, ...args);
  }
}

/** Brings build/core-*.wasm up to date; make does nothing when they are. */
export function buildCore(): void {
  execFileSync('make', ['--no-print-directory', 'wasm'], { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] });
}
