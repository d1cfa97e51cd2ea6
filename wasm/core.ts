/** The core module as TypeScript sees it: its exports, and how to put an instance on a memory. */
import { alignUp } from '../src/gguf/sizes.ts';

/** Exports of the core (wasm/bindings.cc). Addresses are byte offsets in the instance's memory. */
export interface CoreExports {
  readonly __stack_pointer: WebAssembly.Global;
  _initialize?(): void;
  heap_base(): number;
  isa_name(index: number): number;
  isa_kernels(index: number): number;
  engine_bytes(config: number, limits: number): number;
  engine_input_bytes(config: number, limits: number): number;
  engine_output_bytes(config: number, limits: number): number;
  engine_create(arena: number, bytes: number, config: number, limits: number, isa: number, out: number): number;
  engine_vector(engine: number, vector: number, layer: number, length: number): number;
  engine_bind(
    engine: number,
    rank: number,
    slot: number,
    layer: number,
    type: number,
    rowBegin: number,
    rows: number,
    columns: number,
    count: number,
  ): number;
  engine_exchange(engine: number): number;
  engine_begin_experts(engine: number, tokens: number): number;
  engine_step_block(engine: number): number;
  engine_check_step(engine: number): number;
  engine_forward(engine: number, rank: number): void;
  engine_tap(engine: number, tap: number, layer: number, width: number): number;
  engine_abort(engine: number): void;
  run_jobs(kernels: number, jobs: number, count: number, input: number, output: number): void;
  /** wasm/encode.cc; 0 when `type` has no encoder. */
  encode_rows(type: number, source: number, rows: number, columns: number, out: number): number;
  dequantize_rows(type: number, weights: number, rows: number, columns: number, out: number): void;
}

export interface CoreHost {
  shard_call(
    shard: number,
    jobs: number,
    count: number,
    input: number,
    inputBytes: number,
    output: number,
    outputBegin: number,
    outputEnd: number,
  ): void;
  stage_done(stage: number): void;
}

/** A rank's stack. Kernels keep small tiles on it; the largest is some 40 KiB. */
export const stackBytes = 256 * 1024;

const pageBytes = 65536;

/** A shared memory of at least `bytes`; what is never touched costs no RAM. */
export function sharedMemory(bytes: number): WebAssembly.Memory {
  return new WebAssembly.Memory({ initial: Math.ceil(bytes / pageBytes), maximum: pageBytes, shared: true });
}

const noHost: CoreHost = {
  shard_call() {
    throw new Error('a shard instance has no shards of its own');
  },
  stage_done() {},
};

/** Instantiates the core on `memory` with its stack ending at `stackTop` (0: right above the module's own data). */
export function instantiate(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
  stackTop = 0,
  host: CoreHost = noHost,
): CoreExports {
  const instance = new WebAssembly.Instance(module, { env: { memory }, host: { ...host } });
  const core = instance.exports as unknown as CoreExports;
  core.__stack_pointer.value = stackTop || firstStackTop(core);
  core._initialize?.();
  return core;
}

/** Top of the first stack above the module's data; further stacks follow at distances of stackBytes. */
export function firstStackTop(core: CoreExports): number {
  return alignUp(core.heap_base(), 64) + stackBytes;
}
