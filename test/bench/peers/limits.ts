/** Prints what `argv[2]` threads read and multiply at most, as JSON: in a process of its own, so that its memory goes again. */

import { thisMachine } from '../../../src/cli/load-engine.ts';
import { type MachineLimits, measureMachine } from '../../../src/cli/machine-limits.ts';
import { selectBackend } from '../../../src/select/select.ts';

/** By backend; native is missing where the addon is. */
export interface LimitsByBackend {
  readonly wasm: MachineLimits;
  readonly native?: MachineLimits;
}

const machine = thisMachine();
const threads = Number(process.argv[2]);
const measured = (backend: string) => measureMachine(selectBackend(machine, { backend, threads }));
const limits: LimitsByBackend = {
  wasm: await measured('wasm'),
  ...(machine.native.available && { native: await measured('native') }),
};
process.stdout.write(JSON.stringify(limits));
