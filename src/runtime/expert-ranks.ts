/**
 * Ranks that compute routed experts for a device that runs the rest of the model. Both meet in the memory of an Exchange
 * (engine/exchange.h), which the device pins; the device also reads the experts where the ranks hold them.
 */
import { perigeeError } from '../errors.ts';
import type { GgmlTypeName } from '../gguf/types.ts';
import type { Binding, MatrixSlot } from '../model/plan.ts';
import type { ExchangeOffsets } from './cuda-addon.ts';
import { exchangeArrays, exchangeArraysAt, exchangeWords, statuses } from './layout.ts';
import { madeFile } from './native-addon.ts';
import { type NativeOptions, NativeRanks } from './native-ranks.ts';
import { type WasmOptions, WasmRanks } from './wasm-ranks.ts';

/** Rows of every expert's matrix in one slot of one layer, where a rank holds them. */
export interface ExpertPart {
  readonly slot: MatrixSlot;
  readonly layer: number;
  readonly type: GgmlTypeName;
  readonly rowBegin: number;
  readonly rows: number;
  readonly columns: number;
  readonly memory: Uint8Array;
  /** [experts] bytes into `memory`. */
  readonly offsets: Float64Array;
}

export interface ExpertRanks {
  readonly kind: 'wasm' | 'native';
  readonly isa: string;
  readonly threads: number;
  /** The exchange: whole pages that hold nothing else. */
  readonly memory: Uint8Array;
  readonly offsets: ExchangeOffsets;
  /** Every rank's part of every slot. */
  parts(): readonly ExpertPart[];
  /**
   * Lets the ranks serve one step of `tokens` tokens; the device may start its own part once this has been called. Resolves to
   * true when the last layer is done, to false when the device or abort() has ended the step; rejects when a rank has failed.
   */
  run(tokens: number): Promise<boolean>;
  /** Rejects when experts in a mapped file were lost: what the device has read of them may be zeros. run() looks as well. */
  assertWhole(): Promise<void>;
  /** Makes ranks and device leave the step. */
  abort(): void;
  close(): Promise<void>;
}

/** The words that both sides look at. */
class Words {
  readonly #words: Int32Array;
  readonly #failed: number;

  constructor(memory: Uint8Array, offsets: ExchangeOffsets) {
    this.#words = new Int32Array(memory.buffer, memory.byteOffset, memory.byteLength / 4);
    this.#failed = offsets.failed / 4;
  }

  failed(): boolean {
    return Atomics.load(this.#words, this.#failed) !== 0;
  }

  fail(): void {
    Atomics.store(this.#words, this.#failed, 1);
  }
}

export async function startNativeExperts(options: NativeOptions): Promise<ExpertRanks> {
  return new NativeExperts(options.threads, await NativeRanks.start(options, 'experts'));
}

class NativeExperts implements ExpertRanks {
  readonly kind = 'native';
  readonly isa: string;
  readonly threads: number;
  readonly memory: Uint8Array;
  readonly offsets: ExchangeOffsets;
  readonly #ranks: NativeRanks;
  readonly #words: Words;
  #parts: readonly ExpertPart[] | null = null;

  constructor(threads: number, ranks: NativeRanks) {
    this.isa = ranks.isa;
    this.threads = threads;
    this.#ranks = ranks;
    const [memory, offsets] = ranks.engine.exchange();
    this.memory = new Uint8Array(memory);
    this.offsets = exchangeOffsets(offsets);
    this.#words = new Words(this.memory, this.offsets);
  }

  parts(): readonly ExpertPart[] {
    this.#parts ??= this.#findParts();
    return this.#parts;
  }

  async run(tokens: number): Promise<boolean> {
    this.#ranks.assertOpen();
    await this.#ranks.expectDone(await this.#ranks.engine.serve(tokens));
    return !this.#words.failed();
  }

  assertWhole(): Promise<void> {
    return this.#ranks.assertWhole();
  }

  abort(): void {
    this.#words.fail();
  }

  async close(): Promise<void> {
    this.abort();
    await this.#ranks.close();
  }

  #findParts(): readonly ExpertPart[] {
    const files = new Map<number, Uint8Array>();
    return this.#ranks.placed.flatMap(({ bindings }, rank) => {
      const made = bindings.some(({ file }) => file === madeFile)
        ? new Uint8Array(this.#ranks.engine.weights(madeFile, rank))
        : new Uint8Array(0);
      const mapped = (file: number): Uint8Array => {
        const bytes = files.get(file) ?? new Uint8Array(this.#ranks.engine.weights(file, rank));
        files.set(file, bytes);
        return bytes;
      };
      return bindings.map(({ file, ...binding }) => ({ ...binding, memory: file === madeFile ? made : mapped(file) }));
    });
  }
}

export async function startWasmExperts(options: WasmOptions): Promise<ExpertRanks> {
  const ranks = await WasmRanks.start(options, 'experts');
  try {
    return new WasmExperts(ranks, options.shardBytes);
  } catch (error) {
    await ranks.close();
    throw error;
  }
}

class WasmExperts implements ExpertRanks {
  readonly kind = 'wasm';
  readonly isa: string;
  readonly threads: number;
  readonly memory: Uint8Array;
  readonly offsets: ExchangeOffsets;
  readonly #ranks: WasmRanks;
  readonly #words: Words;
  readonly #parts: readonly ExpertPart[];

  constructor(ranks: WasmRanks, shardBytes: number) {
    this.isa = ranks.isa;
    this.threads = ranks.threads;
    this.#ranks = ranks;
    const { core, engine } = ranks;
    const address = core.engine_exchange(engine);
    const view = new DataView(ranks.memory.buffer, address);
    const arrays = exchangeArrays.map((_, index) => view.getUint32(exchangeArraysAt + 4 * index, true) - address);
    const bytes = Number(view.getBigUint64(exchangeArraysAt + 4 * exchangeArrays.length, true));
    this.memory = new Uint8Array(ranks.memory.buffer, address, bytes);
    this.offsets = exchangeOffsets([...Object.values(exchangeWords), ...arrays]);
    this.#words = new Words(this.memory, this.offsets);
    this.#parts = ranks.placed.flatMap(({ bindings }, rank) =>
      bindings.map((binding) => this.#partOf(binding, rank, shardBytes)),
    );
  }

  parts(): readonly ExpertPart[] {
    return this.#parts;
  }

  async run(tokens: number): Promise<boolean> {
    if (this.#ranks.failure) await this.#ranks.failure;
    const status = this.#ranks.core.engine_begin_experts(this.#ranks.engine, tokens);
    if (status !== 0) throw new RangeError(`the step was refused: ${statuses[status]}`);
    try {
      await this.#ranks.runStep();
    } catch (error) {
      this.abort(); // the device waits for a sum that will not come
      throw error;
    }
    return !this.#words.failed();
  }

  /** Nothing is mapped: the shards hold copies. */
  async assertWhole(): Promise<void> {}

  abort(): void {
    this.#words.fail();
  }

  async close(): Promise<void> {
    this.abort();
    await this.#ranks.close();
  }

  #partOf({ matrices, ...binding }: Binding, rank: number, shardBytes: number): ExpertPart {
    const shards = new Set(matrices.map(({ shard }) => shard));
    const bytes = matrices.reduce((sum, matrix) => sum + matrix.bytes, 0);
    const memory = this.#ranks.tasks[rank]?.shards[matrices[0]?.shard ?? 0]?.memory;
    if (shards.size > 1 || !memory) throw perigeeError('MATRIX_TOO_LARGE', { bytes, most: shardBytes });
    return {
      ...binding,
      memory: new Uint8Array(memory.buffer),
      offsets: Float64Array.from(matrices, ({ address }) => address),
    };
  }
}

function exchangeOffsets(values: ArrayLike<number>): ExchangeOffsets {
  const [asked = 0, done = 0, failed = 0, h = 0, chosen = 0, weight = 0, sum = 0] = Array.from(values);
  return { asked, done, failed, h, chosen, weight, sum };
}
