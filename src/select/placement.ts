/**
 * Where the parts of a model go on a machine with GPUs: layers to devices in contiguous ranges, routed experts to the device
 * of their layer or to the CPU ranks, copies of some of those into spare device memory. Pure arithmetic on bytes.
 */
import { formatBytes } from '../gguf/sizes.ts';
import type { CudaDevice } from './machine.ts';
import { cacheBytes, type MemoryNeed, type MemoryTable, memoryTable } from './memory-table.ts';

/** Layers that one device computes; those of all parts follow each other without gaps. */
export interface DevicePart {
  readonly device: number;
  readonly firstLayer: number;
  /** One past the last. */
  readonly end: number;
}

export interface DevicePlacement {
  readonly parts: readonly DevicePart[];
  /** Of each layer, [layers]: experts that find room on its device; dense layers have none. */
  readonly residentExperts: readonly number[];
}

/** What a model takes, in bytes, each way it can be placed. */
export interface ModelNeeds {
  /** Main memory when the CPU does everything, and when it does the routed experts only. */
  readonly cpu: MemoryNeed;
  readonly ranks: MemoryNeed;
  readonly device: DeviceNeeds;
}

export interface DeviceNeeds {
  readonly layers: readonly LayerNeeds[];
  /** Routed experts of a MoE layer. */
  readonly experts: number;
  readonly embedding: number;
  readonly head: number;
  /** The cache of one layer. */
  readonly latents: NonNullable<MemoryNeed['cache']>;
  /** For each range of layers: activations, matrices unpacked for long prompts. */
  readonly work: number;
  /** The same beside ranks: experts that pass through it in long steps. */
  readonly streaming: number;
  /** Why no device can run the model; null: it can. */
  readonly unsupported: string | null;
}

export interface LayerNeeds {
  /** Attention, norms, router, dense network and shared expert. */
  readonly dense: number;
  /** One routed expert; 0 in dense layers. */
  readonly expert: number;
}

/** What a user wants where (optimize-rules.ts). */
export interface LayerWish {
  readonly device: number;
  readonly expertsOnDevice: boolean;
}

export interface PlacedModel extends DevicePlacement {
  readonly memory: readonly MemoryTable[];
  readonly fits: boolean;
}

type Device = Pick<CudaDevice, 'index' | 'memoryBytes' | 'freeBytes'>;

/** Kept free on a device: graphs, fragments and whoever else needs some. */
function marginOf({ memoryBytes }: Device): number {
  return Math.max(256 << 20, 0.02 * memoryBytes);
}

/**
 * Places all of the model on devices, as few of them as hold it; or, with `ranks`, everything but the routed experts, on all
 * devices, so that the spare memory of each holds experts. `memoryAvailable` is the machine's own.
 */
export function placeModel(
  needs: ModelNeeds,
  devices: readonly Device[],
  memoryAvailable: number,
  { ranks, wishes }: { readonly ranks: boolean; readonly wishes?: readonly LayerWish[] | undefined },
): PlacedModel {
  const parts = wishes === undefined ? divide(needs.device, devices, ranks) : partsOf(wishes);
  const residentExperts = chooseResidents(needs.device, parts, devices, { ranks, wishes });
  const used = devices.filter(({ index }) => parts.some(({ device }) => device === index));
  const onCpu = ranks ? [memoryTable('memory', needs.ranks, memoryAvailable)] : [];
  const advice = ranks ? undefined : 'Use --backend hybrid: the routed experts then stay in main memory.';
  const memory = [
    ...used.map((device) =>
      memoryTable(
        `GPU ${device.index}`,
        deviceNeed(needs.device, device, parts, residentExperts, ranks),
        device.freeBytes,
        advice,
      ),
    ),
    ...onCpu,
  ];
  return { parts, residentExperts, memory, fits: memory.every(({ fits }) => fits) };
}

/** Bytes of each layer on its device; the embedding lies with the first and the head with the last. */
function layerCosts(needs: DeviceNeeds, withExperts: boolean): number[] {
  const last = needs.layers.length - 1;
  return needs.layers.map(({ dense, expert }, layer) => {
    const ends = (layer === 0 ? needs.embedding : 0) + (layer === last ? needs.head : 0);
    return dense + ends + cacheBytes(needs.latents) + (withExperts ? needs.experts * expert : 0);
  });
}

const roomOf = (needs: DeviceNeeds, device: Device, ranks: boolean) =>
  device.freeBytes - marginOf(device) - needs.work - (ranks ? needs.streaming : 0);

/** Contiguous ranges, every device filled to the same share of its room. */
function divide(needs: DeviceNeeds, devices: readonly Device[], ranks: boolean): DevicePart[] {
  const costs = layerCosts(needs, !ranks);
  const usable = devices.filter((device) => roomOf(needs, device, ranks) > 0);
  const largestFirst = [...(usable.length > 0 ? usable : devices)].sort(
    (a, b) => roomOf(needs, b, ranks) - roomOf(needs, a, ranks) || a.index - b.index,
  );
  const total = costs.reduce((sum, cost) => sum + cost, 0);
  for (let count = ranks ? largestFirst.length : 1; ; count++) {
    const chosen = largestFirst.slice(0, count).sort((a, b) => a.index - b.index);
    const rooms = chosen.map((device) => ({ device: device.index, bytes: Math.max(1, roomOf(needs, device, ranks)) }));
    if (count >= largestFirst.length || fill(costs, rooms, 1) !== null) return evenly(costs, rooms, total);
  }
}

interface Room {
  readonly device: number;
  readonly bytes: number;
}

/** The division whose fullest device is the least full; over 1 where the model does not fit. */
function evenly(costs: readonly number[], rooms: readonly Room[], total: number): DevicePart[] {
  let low = 0;
  let high = total / Math.max(...rooms.map(({ bytes }) => bytes));
  let best = fill(costs, rooms, high);
  for (let turn = 0; turn < 40; turn++) {
    const share = (low + high) / 2;
    const parts = fill(costs, rooms, share);
    if (parts === null) low = share;
    else [high, best] = [share, parts];
  }
  return best ?? [{ device: rooms[0]?.device ?? 0, firstLayer: 0, end: costs.length }];
}

/** Layers in order, each device up to `share` of its room; null where some are left over. */
function fill(costs: readonly number[], rooms: readonly Room[], share: number): DevicePart[] | null {
  const parts: DevicePart[] = [];
  let firstLayer = 0;
  for (const { device, bytes } of rooms) {
    let end = firstLayer;
    for (let used = 0; end < costs.length; end++) {
      used += costs[end] as number;
      if (used > share * bytes * (1 + 1e-9)) break;
    }
    if (end > firstLayer) parts.push({ device, firstLayer, end });
    firstLayer = end;
  }
  return firstLayer === costs.length ? parts : null;
}

function partsOf(wishes: readonly LayerWish[]): DevicePart[] {
  const parts: DevicePart[] = [];
  for (const [layer, { device }] of wishes.entries()) {
    const last = parts.at(-1);
    if (last?.device === device) parts[parts.length - 1] = { ...last, end: layer + 1 };
    else parts.push({ device, firstLayer: layer, end: layer + 1 });
  }
  return parts;
}

const layersOf = (parts: readonly DevicePart[], index: number) =>
  parts
    .filter(({ device }) => device === index)
    .flatMap(({ firstLayer, end }) => Array.from({ length: end - firstLayer }, (_, at) => firstLayer + at));

/**
 * All experts where the device computes them; else as many as spare memory holds, the same number in every layer of a device.
 * Who asks for ranks though spare memory holds them all wants the ranks at work: then none is copied.
 * Wishes are followed to the letter: experts that they leave on the CPU get no copies.
 */
function chooseResidents(
  needs: DeviceNeeds,
  parts: readonly DevicePart[],
  devices: readonly Device[],
  { ranks, wishes }: { readonly ranks: boolean; readonly wishes?: readonly LayerWish[] | undefined },
): number[] {
  const isMoe = (layer: number) => (needs.layers[layer]?.expert ?? 0) > 0;
  const whole = (layer: number) => isMoe(layer) && (!ranks || (wishes?.[layer]?.expertsOnDevice ?? false));
  const residents = needs.layers.map((_, layer) => (whole(layer) ? needs.experts : 0));
  if (!ranks || wishes !== undefined) return residents;
  const copies = [...residents];
  for (const device of devices) {
    const open = layersOf(parts, device.index).filter(isMoe);
    const oneEach = open.reduce((sum, layer) => sum + (needs.layers[layer]?.expert ?? 0), 0);
    const need = memoryTable('', deviceNeed(needs, device, parts, residents, ranks), 0).need;
    const fitting = Math.floor((device.freeBytes - need) / oneEach);
    for (const layer of open) copies[layer] = Math.max(0, Math.min(needs.experts, fitting));
  }
  return copies.every((count, layer) => count === needs.experts || !isMoe(layer)) ? residents : copies;
}

function deviceNeed(
  needs: DeviceNeeds,
  device: Device,
  parts: readonly DevicePart[],
  residents: readonly number[],
  ranks: boolean,
): MemoryNeed {
  const layers = layersOf(parts, device.index);
  const ranges = parts.filter((part) => part.device === device.index).length;
  const moe = layers.filter((layer) => (needs.layers[layer]?.expert ?? 0) > 0);
  const total = (bytes: (layer: number) => number) => layers.reduce((sum, layer) => sum + bytes(layer), 0);
  const experts = total((layer) => (residents[layer] ?? 0) * (needs.layers[layer]?.expert ?? 0));
  const first = layers.includes(0) ? needs.embedding : 0;
  const last = layers.includes(needs.layers.length - 1) ? needs.head : 0;
  const held = moe.map((layer) => residents[layer] ?? 0);
  const least = Math.min(...held);
  const most = Math.max(...held);
  const count = least === most ? `${least}` : `${least} to ${most}`;
  return {
    lines: [
      {
        name: 'attention, shared and dense',
        bytes: total((layer) => needs.layers[layer]?.dense ?? 0),
        detail: `weights of ${describeLayers(layers)}`,
      },
      ...(moe.length === 0
        ? []
        : [{ name: 'routed experts', bytes: experts, detail: `${count} of ${needs.experts} in ${moe.length} layers` }]),
      ...(first + last === 0 ? [] : [{ name: 'embedding and head', bytes: first + last, detail: 'weights' }]),
      { name: 'work space', bytes: ranges * needs.work, detail: 'activations, matrices unpacked for long prompts' },
      ...(ranks ? [{ name: 'experts in passing', bytes: ranges * needs.streaming, detail: 'for long prompts' }] : []),
      { name: 'margin', bytes: marginOf(device), detail: `kept free of ${formatBytes(device.memoryBytes)}` },
    ],
    cache: { ...needs.latents, bytesPerToken: needs.latents.bytesPerToken * layers.length },
  };
}

/** "layers 0-29, 58". */
function describeLayers(layers: readonly number[]): string {
  const runs: [number, number][] = [];
  for (const layer of layers) {
    const last = runs.at(-1);
    if (last?.[1] === layer - 1) last[1] = layer;
    else runs.push([layer, layer]);
  }
  const names = runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`));
  return `${layers.length === 1 ? 'layer' : 'layers'} ${names.join(', ')}`;
}

/** One line for each part: what is on which device. */
export function describePlacement({ parts, residentExperts }: DevicePlacement, experts: number): string {
  return parts
    .map(({ device, firstLayer, end }) => {
      const layers = Array.from({ length: end - firstLayer }, (_, at) => firstLayer + at);
      const held = layers.map((layer) => residentExperts[layer] ?? 0).filter((count) => count > 0);
      const every = held.every((count) => count === experts);
      const some = every ? 'all their routed experts' : `up to ${Math.max(...held)} of ${experts} experts each`;
      const copies = held.length === 0 ? 'no routed experts' : some;
      return `${describeLayers(layers)} on GPU ${device} with ${copies}`;
    })
    .join('; ');
}
