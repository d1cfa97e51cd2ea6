/** A device that is none: hands layers to expert ranks by Atomics, as a GPU does through pinned memory. */
import type { ModelConfig } from '../../src/model/config.ts';
import { type CudaAddon, type CudaEngine, type ExchangeOffsets, ExpertsBy } from '../../src/runtime/cuda-addon.ts';
import { DeviceOutcome } from '../../src/runtime/device-engine.ts';
import type { TestModel } from './models.ts';

export interface HandedLayer {
  readonly h: Float32Array;
  readonly chosen: Int32Array;
  readonly weight: Float32Array;
}

/** Activations and choices of `tokens` tokens for every MoE layer; every `leftOut`-th choice is none. */
export function handedLayers(
  { config }: { config: ModelConfig },
  tokens: number,
  leftOut = 0,
  seed = 7,
): HandedLayer[] {
  let state = seed;
  const random = () => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return state / 0x7fffffff;
  };
  return Array.from({ length: config.layers - config.denseLayers }, () => {
    const slots = tokens * config.expertsUsed;
    const first = Array.from({ length: tokens }, () => Math.floor(random() * config.experts));
    return {
      h: Float32Array.from({ length: tokens * config.hidden }, () => 2 * random() - 1),
      chosen: Int32Array.from({ length: slots }, (_, s) => {
        const token = Math.floor(s / config.expertsUsed);
        return leftOut && s % leftOut === 0 ? -1 : ((first[token] as number) + s) % config.experts;
      }),
      weight: Float32Array.from({ length: slots }, () => random()),
    };
  });
}

/** What both sides see: the exchange of ExpertRanks. */
export interface Meeting {
  readonly memory: Uint8Array;
  readonly offsets: ExchangeOffsets;
}

export const wordsOf = ({ memory }: Meeting): Int32Array =>
  new Int32Array(memory.buffer, memory.byteOffset, memory.byteLength / 4);

const floatsOf = ({ memory }: Meeting, offset: number, length: number) =>
  new Float32Array(memory.buffer, memory.byteOffset + offset, length);

/** Hands over one step's layers; the sums of each, or null when the ranks gave up. */
export async function playDevice(meeting: Meeting, layers: readonly HandedLayer[]): Promise<Float32Array[] | null> {
  const { offsets } = meeting;
  const words = wordsOf(meeting);
  const sums: Float32Array[] = [];
  for (const [index, { h, chosen, weight }] of layers.entries()) {
    floatsOf(meeting, offsets.h, h.length).set(h);
    words.set(chosen, offsets.chosen / 4);
    floatsOf(meeting, offsets.weight, weight.length).set(weight);
    floatsOf(meeting, offsets.sum, h.length).fill(Number.NaN);
    Atomics.store(words, offsets.asked / 4, index + 1);
    while (Atomics.load(words, offsets.done / 4) < index + 1) {
      if (Atomics.load(words, offsets.failed / 4)) return null;
      await new Promise(setImmediate);
    }
    sums.push(floatsOf(meeting, offsets.sum, h.length).slice());
  }
  return sums;
}

/** Logits that are nothing but the layers' sums: [tokens][vocabulary]. */
export function logitsFrom(sums: readonly Float32Array[], { hidden, vocabulary }: ModelConfig): Float32Array {
  const tokens = (sums[0] as Float32Array).length / hidden;
  return Float32Array.from({ length: tokens * vocabulary }, (_, index) => {
    const at = Math.floor(index / vocabulary) * hidden + ((index % vocabulary) % hidden);
    return sums.reduce((total, sum) => total + (sum[at] as number), 0);
  });
}

/** What a test wishes of the device, and what it has seen. */
export interface FakeDevice extends Pick<CudaAddon, 'CudaEngine'> {
  /** Said of the next step instead of taking part in it. */
  failure: string;
  gbPerSecond: number;
  /** Of what the last streaming step has read: the first byte of every page that holds experts. */
  streamedSum: number;
  readonly expertCounts: Uint32Array;
  readonly uploads: { slot: number; layer: number; bytes: number }[];
  readonly attached: { slot: number; layer: number; rows: number }[];
  readonly stepsBy: number[];
  readonly placed: [layer: number, expert: number, slot: number][];
}

const pageBytes = 4096;

function sumOfPages(sum: number, memory: Uint8Array): number {
  for (let at = 0; at < memory.length; at += pageBytes) sum += memory[at] as number;
  return sum;
}

/** An addon whose engines hand `handedLayers` of as many tokens to the ranks in every step. */
export function fakeDevice({ config }: TestModel): FakeDevice {
  const device: FakeDevice = {
    failure: '',
    gbPerSecond: 0,
    streamedSum: 0,
    expertCounts: new Uint32Array(config.layers * config.experts),
    uploads: [],
    attached: [],
    stepsBy: [],
    placed: [],
    CudaEngine: class implements CudaEngine {
      #meeting: Meeting | null = null;
      #logits = new Float32Array(512 * config.vocabulary);
      #failure = '';
      readonly #experts: Uint8Array[] = [];

      async upload(
        slot: number,
        layer: number,
        ...[, , , , , bytes]: [number, number, number, number, number, Uint8Array]
      ) {
        device.uploads.push({ slot, layer, bytes: bytes.length });
        return '';
      }
      setVector() {
        return true;
      }
      attachExchange(memory: Uint8Array, offsets: ExchangeOffsets) {
        this.#meeting = { memory, offsets };
        return '';
      }
      attachExperts(
        slot: number,
        layer: number,
        ...[, , rows, , memory]: [number, number, number, number, Uint8Array, Float64Array]
      ) {
        device.attached.push({ slot, layer, rows });
        this.#experts.push(memory);
        return '';
      }
      async start() {
        return '';
      }
      logits() {
        return this.#logits;
      }
      async step(
        tokens: Int32Array,
        _positions: Int32Array,
        _sequences: Int32Array,
        _pageTables: readonly Int32Array[],
        _outputs: Int32Array,
        by: number,
      ) {
        if (tokens.some((token) => token < 0 || token >= config.vocabulary)) return DeviceOutcome.Refused;
        device.stepsBy.push(by);
        this.#failure = device.failure;
        if (this.#failure) return DeviceOutcome.Failed;
        if (by === ExpertsBy.Streaming) device.streamedSum = this.#experts.reduce(sumOfPages, 0);
        if (by === ExpertsBy.Streaming || !this.#meeting) return DeviceOutcome.Done;
        const sums = await playDevice(this.#meeting, handedLayers({ config }, tokens.length));
        this.#failure = sums ? '' : 'the expert ranks gave no answer';
        if (sums) this.#logits.set(logitsFrom(sums, config));
        return sums ? DeviceOutcome.Done : DeviceOutcome.Failed;
      }
      failure() {
        return this.#failure;
      }
      tap() {
        return null;
      }
      stageTimes() {
        return new Float64Array(0);
      }
      expertCounts() {
        return device.expertCounts.slice();
      }
      async placeExpert(layer: number, expert: number, slot: number) {
        device.placed.push([layer, expert, slot]);
        return '';
      }
      async measureStreaming() {
        return device.gbPerSecond;
      }
      async close() {}
    },
  };
  return device;
}
