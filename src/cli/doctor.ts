import { Command } from 'commander';
import { formatBytes } from '../gguf/sizes.ts';
import { detectMachine } from '../select/machine.ts';
import { selectBackend } from '../select/select.ts';
import { type EngineOptions, withConfigFile, withEngineOptions, withJsonOption } from './options.ts';
import { print, printJson } from './output.ts';
import { packageVersion } from './version.ts';

/** `perigee doctor`: what this machine has, how a model would run on it, and why. */
export function doctorCommand(): Command {
  const command = new Command('doctor')
    .description('show what this machine has, which configuration is chosen, and why')
    .action(doctor);
  return withConfigFile(withJsonOption(withEngineOptions(command)));
}

function doctor(options: EngineOptions & { readonly json?: boolean }): void {
  const machine = detectMachine();
  const plan = selectBackend(machine, options);
  if (options.json) {
    printJson({ version: packageVersion(), machine, plan });
    return;
  }
  print(`Perigee ${packageVersion()} on Node ${machine.node}, ${machine.platform}`);
  print(`CPU     ${machine.cpu}, ${machine.physicalCores} cores; ${machine.cores} threads available`);
  print(`Memory  ${formatBytes(machine.memoryAvailable)} available of ${formatBytes(machine.memoryTotal)}`);
  print(`WASM    SIMD ${machine.wasm.simd ? 'yes' : 'no'}, relaxed SIMD ${machine.wasm.relaxedSimd ? 'yes' : 'no'}`);
  print();
  for (const line of plan.reasons) print(line);
}
