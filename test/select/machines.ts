/** Machines as detectMachine() recorded them, or would have. */
import type { CudaDevice, Machine } from '../../src/select/machine.ts';

const noInstructions = 'this CPU lacks its instructions';
const range = (count: number) => Array.from({ length: count }, (_, index) => index);

/** A virtual machine with two cores of a Zen 5 EPYC, no hyperthreads shown. */
export const zen5: Machine = {
  cpu: 'AMD EPYC',
  platform: 'linux x64',
  node: '24.21.0',
  cores: 2,
  physicalCores: 2,
  cpus: [[0], [1]],
  memoryTotal: 25e9,
  memoryAvailable: 24e9,
  wasm: { simd: true, relaxedSimd: true },
  native: { available: true, isas: ['avx512', 'avx2', 'scalar'], refused: { amx: noInstructions } },
  cuda: { available: false, why: 'there is no CUDA driver' },
};

/** Sixteen cores of a Sapphire Rapids with AMX; CPU n and CPU n + 16 share a core. */
export const sapphireRapids: Machine = {
  ...zen5,
  cpu: 'Intel(R) Xeon(R) Platinum 8480+',
  cores: 32,
  physicalCores: 16,
  cpus: range(16).map((core) => [core, core + 16]),
  memoryTotal: 1e12,
  memoryAvailable: 9.5e11,
  native: { available: true, isas: ['amx', 'avx512', 'avx2', 'scalar'], refused: {} },
};

export const graviton: Machine = {
  ...zen5,
  cpu: 'Neoverse-V2',
  platform: 'linux arm64',
  cores: 8,
  physicalCores: 8,
  cpus: range(8).map((core) => [core]),
  native: { available: true, isas: ['neon', 'scalar'], refused: {} },
};

/** Two cores with hyperthreads, next to each other as older firmware counts them. */
export const oldLaptop: Machine = {
  ...zen5,
  cpu: 'Intel(R) Core(TM) i5-6200U',
  node: '20.20.2',
  cores: 4,
  cpus: [
    [0, 1],
    [2, 3],
  ],
  wasm: { simd: true, relaxedSimd: false },
  native: { available: true, isas: ['avx2', 'scalar'], refused: { amx: noInstructions, avx512: noInstructions } },
};

export const withoutAddon: Machine = {
  ...zen5,
  native: { available: false, why: 'there is no native addon beside the code' },
};

/** The addon loads, but no vector kernels of it compute the specification's bits. */
export const selfCheckFailed: Machine = {
  ...zen5,
  native: {
    available: true,
    isas: ['scalar'],
    refused: {
      amx: noInstructions,
      avx512: "its Q4_K products differ from the scalar table's",
      avx2: "its Q4_K products differ from the scalar table's",
    },
  },
};

/** A container that a quota holds to 2 of the 64 CPUs it sees. */
export const quotaContainer: Machine = {
  ...zen5,
  physicalCores: 64,
  cpus: range(64).map((core) => [core]),
};

/** A container that is given two hyperthreads of one core, and one of another, of 64. */
export const cpusetContainer: Machine = { ...zen5, cores: 3, physicalCores: 64, cpus: [[4, 68], [5]] };

const GB = 1e9;
const GiB = 2 ** 30;

const h200: CudaDevice = {
  index: 0,
  name: 'NVIDIA H200',
  capability: '9.0',
  memoryBytes: 139.8 * GiB,
  freeBytes: 139.2 * GiB,
  multiprocessors: 132,
  cacheBytes: 60 << 20,
};
const rtx4090: CudaDevice = {
  index: 0,
  name: 'NVIDIA GeForce RTX 4090',
  capability: '8.9',
  memoryBytes: 23.6 * GiB,
  freeBytes: 23.2 * GiB,
  multiprocessors: 128,
  cacheBytes: 72 << 20,
};

const withGpus = (machine: Machine, memoryAvailable: number, devices: readonly CudaDevice[]): Machine => ({
  ...machine,
  memoryTotal: 1.05 * memoryAvailable,
  memoryAvailable,
  cuda: { available: true, devices },
});

/** Much device memory, little main memory. */
export const h200Machine = withGpus(sapphireRapids, 128 * GB, [h200]);

/** KTransformers' home: a consumer GPU beside much memory. */
export const rtx4090Machine = withGpus(sapphireRapids, 512 * GB, [rtx4090]);

/** Two of them, of which the first drives a screen, and more memory. */
export const twoGpuMachine = withGpus(sapphireRapids, 768 * GB, [
  { ...rtx4090, freeBytes: 18 * GiB },
  { ...rtx4090, index: 1 },
]);

export const smallGpuMachine = withGpus(zen5, 60 * GB, [
  { ...rtx4090, name: 'NVIDIA GeForce RTX 3070', capability: '8.6', memoryBytes: 7.8 * GiB, freeBytes: 7.4 * GiB },
]);

/** Before bf16 tensor cores. */
export const oldGpuMachine = withGpus(zen5, 60 * GB, [{ ...rtx4090, name: 'Tesla V100', capability: '7.0' }]);
