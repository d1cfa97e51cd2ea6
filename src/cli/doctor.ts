import { Command } from 'commander';
import { formatBytes } from '../gguf/sizes.ts';
import type { Machine } from '../select/machine.ts';
import { renderMemoryTables } from '../select/memory-table.ts';
import { kernelTables } from '../select/tables.ts';
import { defaultBatchSize, openModel, planModel, thisMachine } from './load-engine.ts';
import { modelHelp, modelPath } from './model-argument.ts';
import { type EngineOptions, withConfigFile, withContextOption, withEngineOptions, withJsonOption } from './options.ts';
import { print, printJson } from './output.ts';
import { packageVersion } from './version.ts';

/** `perigee doctor`: what this machine has, how a model would run on it, and why. */
export function doctorCommand(): Command {
  const command = new Command('doctor')
    .description('show what this machine has, how a model would run on it, and why')
    .argument('[model]', modelHelp)
    .action(doctor);
  return withConfigFile(withJsonOption(withContextOption(withEngineOptions(command))));
}

async function doctor(argument: string | undefined, options: EngineOptions & { readonly json?: boolean }) {
  const machine = thisMachine();
  const model = await openModel(await modelPath(argument), options);
  const { plan } = planModel(model, { ...options, maxBatchSize: defaultBatchSize });
  const kernels = kernelTables(machine);
  if (options.json) {
    printJson({ version: packageVersion(), machine, kernels, plan });
    return;
  }
  print(`Perigee ${packageVersion()} on Node ${machine.node}, ${machine.platform}`);
  print(`CPU      ${machine.cpu}, ${describeCores(machine)}`);
  print(`Memory   ${formatBytes(machine.memoryAvailable)} available of ${formatBytes(machine.memoryTotal)}`);
  for (const line of describeGpus(machine)) print(`GPU      ${line}`);
  print();
  for (const { backend, isa, lacking } of kernels) {
    print(`${backend.padEnd(8)} ${isa.padEnd(8)} ${lacking === null ? 'ready' : `lacking: ${lacking}`}`);
  }
  print();
  print(`${model.config.name} would run thus:`);
  for (const line of plan.reasons) print(line);
  print();
  print(renderMemoryTables(plan.memory));
}

function describeGpus({ cuda }: Machine): string[] {
  if (!cuda.available) return [`none: ${cuda.why}`];
  return cuda.devices.map(
    ({ index, name, capability, memoryBytes, freeBytes, multiprocessors }) =>
      `${index}: ${name}, capability ${capability}, ${multiprocessors} multiprocessors, ${formatBytes(freeBytes)} free of ${formatBytes(memoryBytes)}`,
  );
}

function describeCores({ physicalCores, cpus, cores }: Machine): string {
  const usable = cpus === null ? '' : `, ${cpus.length} for this process`;
  return `${physicalCores} cores${usable}; ${cores} threads at once`;
}
