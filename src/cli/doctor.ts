import { Command } from 'commander';
import { formatBytes } from '../gguf/sizes.ts';
import type { Machine } from '../select/machine.ts';
import { selectBackend } from '../select/select.ts';
import { kernelTables } from '../select/tables.ts';
import { thisMachine } from './load-engine.ts';
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
  const machine = thisMachine();
  const plan = selectBackend(machine, options);
  const kernels = kernelTables(machine);
  if (options.json) {
    printJson({ version: packageVersion(), machine, kernels, plan });
    return;
  }
  print(`Perigee ${packageVersion()} on Node ${machine.node}, ${machine.platform}`);
  print(`CPU      ${machine.cpu}, ${describeCores(machine)}`);
  print(`Memory   ${formatBytes(machine.memoryAvailable)} available of ${formatBytes(machine.memoryTotal)}`);
  print();
  for (const { backend, isa, lacking } of kernels) {
    print(`${backend.padEnd(8)} ${isa.padEnd(8)} ${lacking === null ? 'ready' : `lacking: ${lacking}`}`);
  }
  print();
  for (const line of plan.reasons) print(line);
}

function describeCores({ physicalCores, cpus, cores }: Machine): string {
  const usable = cpus === null ? '' : `, ${cpus.length} for this process`;
  return `${physicalCores} cores${usable}; ${cores} threads at once`;
}
