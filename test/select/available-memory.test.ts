/** Memory as machines and containers report it. */
import { expect, it } from 'vitest';
import { availableMemory, type MemoryProbe } from '../../src/select/available-memory.ts';

const GB = 1e9;
const machine: MemoryProbe = {
  constrained: 0,
  available: 20 * GB,
  machineFree: 20 * GB,
  machineTotal: 32 * GB,
  readText: () => null,
};

const stat = (active: number, inactive: number) => `anon 5\ninactive_file ${inactive}\nactive_file ${active}\n`;

function container(files: Readonly<Record<string, string>>, changes: Partial<MemoryProbe> = {}): number {
  return availableMemory({
    ...machine,
    constrained: 16 * GB,
    available: 1 * GB,
    ...changes,
    readText: (path) => files[path] ?? null,
  });
}

it('is what the machine has where there is no limit', () => {
  expect(availableMemory(machine)).toBe(20 * GB);
  expect(availableMemory({ ...machine, constrained: 2 ** 64 })).toBe(20 * GB);
});

it("counts a container's file cache as free, for both generations of control groups", () => {
  expect(container({ '/proc/self/cgroup': '0::/\n', '/sys/fs/cgroup/memory.stat': stat(4 * GB, 8 * GB) })).toBe(
    13 * GB,
  );
  const first = {
    '/proc/self/cgroup': '4:memory:/box\n1:cpu:/\n',
    '/sys/fs/cgroup/memory/box/memory.stat': stat(2 * GB, 3 * GB),
  };
  expect(container(first)).toBe(6 * GB);
});

it('never exceeds the limit or what the machine itself has left', () => {
  const files = { '/sys/fs/cgroup/memory.stat': stat(90 * GB, 0) };
  expect(container(files)).toBe(16 * GB);
  expect(container(files, { machineFree: 3 * GB })).toBe(3 * GB);
});

it('takes Node at its word where nothing can be read', () => expect(container({})).toBe(1 * GB));
