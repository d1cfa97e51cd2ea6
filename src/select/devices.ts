/** Which GPUs could take a model, wholly or beside CPU ranks, and what is in the way. */
import { perigeeError } from '../errors.ts';
import { formatBytes } from '../gguf/sizes.ts';
import type { CudaDevice, Machine } from './machine.ts';
import type { MemoryTable } from './memory-table.ts';
import type { OptimizeWishes } from './optimize-wishes.ts';
import { type ModelNeeds, type PlacedModel, placeModel } from './placement.ts';

/** A placement, which may not fit; or why there is none. */
export type DeviceOption =
  | { readonly placed: PlacedModel; readonly why: '' }
  | { readonly placed: null; readonly why: string };

export type DeviceOptions = Readonly<Record<'cuda' | 'hybrid', DeviceOption>>;

/** The portable kernels need bf16 tensor cores and asynchronous copies: Ampere. */
const leastCapability = 8;

export function deviceOptions(
  machine: Machine,
  exactActivations: boolean,
  needs: ModelNeeds | null,
  rules: OptimizeWishes | null,
): DeviceOptions {
  const devices = usableDevices(machine);
  const why =
    typeof devices === 'string'
      ? devices
      : needs === null
        ? 'without a model there is nothing to place'
        : exactActivations
          ? "float activations (--exact-activations) are the CPU backends' alone"
          : needs.device.unsupported;
  if (why !== null || typeof devices === 'string' || needs === null) {
    const none = { placed: null, why: why ?? '' };
    return { cuda: none, hybrid: none };
  }
  const layers = rules?.layers;
  for (const { device } of layers ?? []) refuseUnknown(device, devices);
  const onCpu = layers?.some(({ expertsOnDevice }, layer) => !expertsOnDevice && isMoe(needs, layer)) ?? false;
  const place = (ranks: boolean) => placeModel(needs, devices, machine.memoryAvailable, { ranks, wishes: layers });
  const hasExperts = needs.device.experts > 0;
  return {
    cuda: onCpu
      ? { placed: null, why: 'the optimize rules leave routed experts on the CPU' }
      : { placed: place(false), why: '' },
    hybrid: hasExperts
      ? { placed: place(true), why: '' }
      : { placed: null, why: 'the model has no routed experts that the CPU could compute' },
  };
}

const isMoe = (needs: ModelNeeds, layer: number) => (needs.device.layers[layer]?.expert ?? 0) > 0;

function usableDevices({ cuda }: Machine): readonly CudaDevice[] | string {
  if (!cuda.available) return cuda.why;
  const usable = cuda.devices.filter(({ capability }) => Number(capability) >= leastCapability);
  if (usable.length > 0) return usable;
  const found = cuda.devices.map(({ name, capability }) => `${name} has ${capability}`).join(', ');
  return found === '' ? 'there is no GPU' : `its kernels need compute capability 8.0 or later, and ${found}`;
}

function refuseUnknown(device: number, devices: readonly CudaDevice[]): void {
  if (devices.some(({ index }) => index === device)) return;
  throw perigeeError('OPTION_INVALID', {
    option: '--optimize-config-path',
    value: `a file that names cuda:${device}`,
    expected: `one that names devices of this machine: ${devices.map(({ index }) => `cuda:${index}`).join(', ')}`,
  });
}

/** "GPU 0 needs 583 GB and has 139 GB free". */
export function shortfall(tables: readonly MemoryTable[]): string {
  return tables
    .filter(({ fits }) => !fits)
    .map(({ place, need, available }) => `${place} would need ${formatBytes(need)} and has ${formatBytes(available)}`)
    .join(', ');
}

/** The name under which a device's machine code goes: "sm_90". */
export function deviceIsa({ cuda }: Machine, index: number): string {
  const capability = cuda.available ? cuda.devices.find((device) => device.index === index)?.capability : undefined;
  return `sm_${(capability ?? '').replace('.', '')}`;
}
