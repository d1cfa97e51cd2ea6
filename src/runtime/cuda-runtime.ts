/** A model wholly on GPUs. */
import type { ModelConfig } from '../model/config.ts';
import { type CudaAddon, cudaAddon, ExpertsBy } from './cuda-addon.ts';
import { DeviceEngine, type DeviceOptions } from './device-engine.ts';
import { activeBytes, weightBytes } from './place.ts';
import type { Runtime, RuntimeLimits, StageTime, StepBatch } from './runtime.ts';
import type { TapName } from './taps.ts';

/** Uploads the model. */
export async function startCuda(
  options: DeviceOptions,
  addon: Pick<CudaAddon, 'CudaEngine'> = cudaAddon('cuda'),
): Promise<Runtime> {
  const device = new DeviceEngine(addon, 'cuda', options);
  try {
    const bytesTotal = weightBytes(options.tensors);
    let bytesRead = 0;
    await device.upload(
      () => true,
      (count) => {
        bytesRead = Math.min(bytesRead + count, bytesTotal);
        options.onProgress({ bytesRead, bytesTotal });
      },
    );
    await device.start();
    options.onProgress({ bytesRead: bytesTotal, bytesTotal });
  } catch (error) {
    await device.close();
    throw error;
  }
  return new CudaRuntime(options, device);
}

class CudaRuntime implements Runtime {
  readonly backend = 'cuda';
  readonly isa = 'cuda';
  readonly threads = 0;
  readonly config: ModelConfig;
  readonly limits: RuntimeLimits;
  readonly weightBytes: number;
  readonly activeWeightBytes: number;
  readonly #device: DeviceEngine;

  constructor(options: DeviceOptions, device: DeviceEngine) {
    this.config = options.config;
    this.limits = options.limits;
    this.weightBytes = weightBytes(options.tensors);
    this.activeWeightBytes = activeBytes(options.config, options.tensors);
    this.#device = device;
  }

  step(batch: StepBatch): Promise<Float32Array> {
    return this.#device.step(batch, ExpertsBy.Ranks);
  }

  tap(name: TapName, layer: number): Float32Array | Int32Array {
    return this.#device.tap(name, layer);
  }

  stageTimes(): StageTime[] {
    return this.#device.stageTimes();
  }

  close(): Promise<void> {
    return this.#device.close();
  }
}
