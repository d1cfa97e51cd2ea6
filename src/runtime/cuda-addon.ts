/** The CUDA half of the native addon as TypeScript sees it. Slots, vectors, types and taps are the engine's numbers. */
import { perigeeError } from '../errors.ts';
import type { CudaSupport } from '../select/machine.ts';
import { type NativeAddon, nativeAddon, nativeSupport } from './native-addon.ts';

/** How a step's routed experts are computed where they are not resident on the device. */
export const ExpertsBy = { Ranks: 0, Streaming: 1 } as const;

/** Words and arrays of engine/exchange.h, as byte offsets into the memory that holds them. */
export interface ExchangeOffsets {
  readonly asked: number;
  readonly done: number;
  readonly failed: number;
  readonly h: number;
  readonly chosen: number;
  readonly weight: number;
  readonly sum: number;
}

/** A model on one or several devices (native/cuda/cuda_object.cc). Strings are '' or what failed. */
export interface CudaEngine {
  /** Matrix `index` of `count`, as in the file. Resolves when the bytes may be reused. */
  upload(
    slot: number,
    layer: number,
    type: number,
    rows: number,
    columns: number,
    count: number,
    index: number,
    bytes: Uint8Array,
  ): Promise<string>;
  setVector(vector: number, layer: number, type: number, raw: Uint8Array): boolean;

  /** Where device and expert ranks meet: memory that the ranks use, which becomes pinned. Before start(). */
  attachExchange(memory: Uint8Array, offsets: ExchangeOffsets): string;
  /**
   * Where the ranks hold rows `rowBegin` .. of the layer's experts: `offsets` [experts] into `memory`. For streaming and for
   * experts in spare device memory. Once per rank, slot and layer, before start().
   */
  attachExperts(
    slot: number,
    layer: number,
    type: number,
    rowBegin: number,
    rows: number,
    columns: number,
    memory: Uint8Array,
    offsets: Float64Array,
  ): string;

  /** Allocates work space, captures graphs; resolves when ready for steps. */
  start(): Promise<string>;
  /** [batchOutputs][vocabulary]; empty once closed. */
  logits(): Float32Array;
  /**
   * As the native engine's step; resolves to an Outcome, and `failure()` then says what failed. `residuals` as in StepBatch;
   * undefined: each layer begins with what the one before it left.
   */
  step(
    tokens: Int32Array,
    positions: Int32Array,
    sequences: Int32Array,
    pageTables: readonly Int32Array[],
    outputs: Int32Array,
    expertsBy: number,
    residuals: Float32Array | undefined,
  ): Promise<number>;
  failure(): string;
  tap(tap: number, layer: number, tokens: number): ArrayBuffer | null;
  /** Milliseconds by stage, summed over steps; only of engines made with `profile`. */
  stageTimes(): Float64Array;

  /** How often each expert was chosen since the start, [layers * experts]. */
  expertCounts(): Uint32Array;
  /** Brings an expert into a slot of its layer, beside running steps; it is used from the step after the one that follows. */
  placeExpert(layer: number, expert: number, slot: number): Promise<string>;
  /** GB a second that streaming moves, measured over one layer. */
  measureStreaming(): Promise<number>;
  close(): Promise<void>;
}

export interface CudaEngineOptions {
  /** The structs of engine/config.h as bytes. */
  readonly config: Uint8Array;
  readonly limits: Uint8Array;
  /** Devices and their layers, [device, first layer, end] each, ascending and without gaps. */
  readonly parts: Int32Array;
  /** [layers] experts that find room on the device; all of them: no ranks are needed. */
  readonly residentExperts: Int32Array;
  /** Times of stages instead of graphs. */
  readonly profile: boolean;
  /** How long the device waits for the ranks before the step fails. */
  readonly waitMilliseconds: number;
}

export interface CudaAddon {
  cudaSupport(): CudaSupport;
  readonly CudaEngine: new (options: CudaEngineOptions) => CudaEngine;
  /** GB a second that copying within the device's memory reads and writes, both counted; 0 where it has no room for it. */
  measureDevice(device: number): number;
}

/** GB a second of a device's memory, read and written; null where there is no room to measure it. */
export function measureDevice(device: number): number | null {
  return cudaAddon('cuda').measureDevice(device) || null;
}

/** The GPUs the addon finds here, or why there are none. */
export function cudaSupport(): CudaSupport {
  const support = nativeSupport();
  if (!support.available) return support;
  const addon = nativeAddon() as Partial<CudaAddon>;
  return addon.cudaSupport?.() ?? { available: false, why: 'the addon was built without CUDA' };
}

/** The addon's part for GPUs; refused by name where there is none to use. */
export function cudaAddon(backend: 'cuda' | 'hybrid'): CudaAddon {
  const support = cudaSupport();
  if (!support.available) throw perigeeError('BACKEND_UNAVAILABLE', { backend, why: support.why });
  return nativeAddon() as NativeAddon & CudaAddon;
}
