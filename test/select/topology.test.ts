/** CPUs as Linux lists them. */
import { expect, it } from 'vitest';
import { readTopology } from '../../src/select/topology.ts';

/** A machine whose CPU n and CPU n + cores are hyperthreads of one core. */
function files(cores: number, allowed: string): Record<string, string> {
  const siblings = Array.from({ length: 2 * cores }, (_, cpu) => [
    `/sys/devices/system/cpu/cpu${cpu}/topology/thread_siblings_list`,
    `${cpu % cores},${(cpu % cores) + cores}\n`,
  ]);
  return {
    '/sys/devices/system/cpu/online': `0-${2 * cores - 1}\n`,
    '/proc/self/status': `Name:\tnode\nCpus_allowed:\tff\nCpus_allowed_list:\t${allowed}\n`,
    ...Object.fromEntries(siblings),
  };
}

const read = (texts: Readonly<Record<string, string>>) => readTopology((path) => texts[path] ?? null);

it('groups hyperthreads by core', () => {
  expect(read(files(2, '0-3'))).toEqual({
    physicalCores: 2,
    cpus: [
      [0, 2],
      [1, 3],
    ],
  });
});

it('counts the whole machine, but lists only what this process may use', () => {
  expect(read(files(64, '3,5-6,69'))).toEqual({ physicalCores: 64, cpus: [[3], [5, 69], [6]] });
});

it('leaves out CPUs that are switched off', () => {
  expect(read({ ...files(2, '0-3'), '/sys/devices/system/cpu/online': '0,2-3\n' })).toEqual({
    physicalCores: 2,
    cpus: [[0, 2], [3]],
  });
});

it('knows nothing where the system does not tell', () => {
  expect(read({})).toBeNull();
  expect(read({ '/sys/devices/system/cpu/online': '0-1\n' })).toBeNull();
});
