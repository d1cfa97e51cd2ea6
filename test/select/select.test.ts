import { describe, expect, it } from 'vitest';
import { detectMachine, type Machine } from '../../src/select/machine.ts';
import { selectBackend, type Wishes } from '../../src/select/select.ts';
import {
  cpusetContainer,
  graviton,
  oldLaptop,
  quotaContainer,
  sapphireRapids,
  selfCheckFailed,
  withoutAddon,
  zen5,
} from './machines.ts';

const node20WithoutFlag: Machine = { ...withoutAddon, node: '20.20.2', wasm: { simd: true, relaxedSimd: false } };
const withoutSimd: Machine = { ...withoutAddon, wasm: { simd: false, relaxedSimd: false } };

const linesFor = (name: string, machine: Machine, wishes: Wishes = {}) =>
  selectBackend(machine, wishes).reasons.filter((line) => line.startsWith(`${name}: `));

describe('where nothing is asked for', () => {
  it.each([
    ['two cores of Zen 5', zen5, 'native', 'avx512', [0, 1]],
    ['a Xeon with AMX', sapphireRapids, 'native', 'amx', Array.from({ length: 16 }, (_, core) => core)],
    ['an arm64 machine', graviton, 'native', 'neon', [0, 1, 2, 3, 4, 5, 6, 7]],
    ['an old laptop', oldLaptop, 'native', 'avx2', [0, 2]],
    ['a container with three hyperthreads', cpusetContainer, 'native', 'avx512', [4, 5]],
  ])('%s runs native code, one pinned rank for each core', (_, machine, backend, isa, cpus) => {
    expect(selectBackend(machine)).toMatchObject({ backend, isa, threads: cpus.length, cpus });
  });

  it.each([
    ['without the addon', withoutAddon, 'there is no native addon beside the code'],
    ['whose addon failed its self-check', selfCheckFailed, 'only its scalar kernels run here'],
  ])('a machine %s runs WebAssembly and says why', (_, machine, why) => {
    expect(selectBackend(machine)).toMatchObject({ backend: 'wasm', isa: 'relaxed', threads: 2, cpus: null });
    expect(linesFor('native', machine)).toEqual([`native: rejected, ${why}`]);
  });

  it('kernels that failed the self-check are passed over for the next', () => {
    const refused = { avx512: "its Q4_K products differ from the scalar table's" };
    const machine: Machine = { ...zen5, native: { available: true, isas: ['avx2', 'scalar'], refused } };
    expect(selectBackend(machine)).toMatchObject({ backend: 'native', isa: 'avx2' });
    expect(linesFor('avx512', machine)[0]).toContain("differ from the scalar table's");
  });

  it('a quota counts, and nobody is pinned to CPUs that others share', () => {
    expect(selectBackend(quotaContainer)).toMatchObject({ backend: 'native', threads: 2, cpus: null });
    expect(selectBackend(quotaContainer).reasons.join('\n')).toContain('a quota shares 64 CPUs');
  });

  it('SIMD128 is taken where Node has no relaxed SIMD', () => {
    expect(selectBackend(node20WithoutFlag)).toMatchObject({ backend: 'wasm', isa: 'simd128' });
    expect(linesFor('relaxed', node20WithoutFlag)).toEqual([
      'relaxed: rejected, Node 20.20.2 does not compile WebAssembly relaxed SIMD',
    ]);
  });

  it('there is one line of reason for every alternative', () => {
    for (const [machine, names] of [
      [zen5, ['wasm', 'hybrid', 'cuda', 'amx', 'avx2', 'neon', 'scalar']],
      [withoutAddon, ['native', 'hybrid', 'cuda', 'simd128', 'scalar']],
    ] as const) {
      for (const name of names) expect(linesFor(name, machine)).toEqual([expect.stringContaining(': rejected, ')]);
    }
    expect(linesFor('amx', zen5)[0]).toContain('lacks its instructions (kernels for AMX tiles');
    expect(linesFor('neon', zen5)[0]).toContain('it is for arm64');
    expect(linesFor('avx2', graviton)[0]).toContain('it is for x64');
  });

  it('there are never more ranks than the core can number', () => {
    const cpus = Array.from({ length: 384 }, (_, core) => [core]);
    const huge: Machine = { ...zen5, cores: 384, physicalCores: 384, cpus };
    expect(selectBackend(huge).threads).toBe(256);
    expect(selectBackend(huge, { backend: 'wasm' }).threads).toBe(256);
  });
});

describe('--isa', () => {
  it.each([
    ['avx2', 'native'],
    ['relaxed', 'wasm'],
    ['simd128', 'wasm'],
    ['scalar', 'native'],
  ])('%s implies backend %s', (isa, backend) => {
    expect(selectBackend(zen5, { isa })).toMatchObject({ backend, isa });
  });

  it('scalar is that of the backend asked for, or of the only one', () => {
    expect(selectBackend(zen5, { isa: 'scalar', backend: 'wasm' })).toMatchObject({ backend: 'wasm', isa: 'scalar' });
    expect(selectBackend(withoutAddon, { isa: 'scalar' })).toMatchObject({ backend: 'wasm', isa: 'scalar' });
  });

  it.each<[string, Machine, Wishes, string]>([
    ['a CPU that lacks it', zen5, { isa: 'amx' }, 'what runs here: avx512, avx2, scalar, relaxed, simd128'],
    ['another architecture', graviton, { isa: 'avx512' }, 'it is for x64'],
    ['no addon', withoutAddon, { isa: 'avx512' }, 'there is no native addon'],
    ['a Node that lacks it', node20WithoutFlag, { isa: 'relaxed' }, 'does not compile WebAssembly relaxed SIMD'],
    ['the other backend', zen5, { isa: 'avx2', backend: 'wasm' }, 'on backend wasm: relaxed, simd128, scalar'],
    ['no backend at all', zen5, { isa: 'mmx' }, 'no kernels of that name'],
  ])('is refused by name for %s', (_, machine, wishes, message) => {
    expect(() => selectBackend(machine, wishes)).toThrow(
      expect.objectContaining({ code: 'ISA_UNAVAILABLE', exitCode: 2, message: expect.stringContaining(message) }),
    );
  });
});

describe('--backend', () => {
  it('forces either', () => {
    expect(selectBackend(zen5, { backend: 'wasm' })).toMatchObject({ backend: 'wasm', isa: 'relaxed', threads: 2 });
    expect(selectBackend(zen5, { backend: 'native' })).toMatchObject({ backend: 'native', isa: 'avx512' });
    expect(linesFor('native', zen5, { backend: 'wasm' })).toEqual(['native: rejected, not what --backend asks for']);
  });

  it.each(['hybrid', 'cuda', 'tpu'])('refuses %s by name', (backend) => {
    expect(() => selectBackend(zen5, { backend })).toThrow(
      expect.objectContaining({
        code: 'BACKEND_UNAVAILABLE',
        exitCode: 2,
        message: expect.stringContaining(`'${backend}'`),
      }),
    );
  });

  it('refuses native where it cannot run, and falls back to nothing', () => {
    expect(() => selectBackend(withoutAddon, { backend: 'native', isa: 'avx2' })).toThrow(
      expect.objectContaining({ code: 'BACKEND_UNAVAILABLE', message: expect.stringContaining('no native addon') }),
    );
    expect(() => selectBackend(selfCheckFailed, { backend: 'native', isa: 'avx2' })).toThrow(
      expect.objectContaining({ code: 'ISA_UNAVAILABLE', message: expect.stringContaining('differ') }),
    );
    expect(selectBackend(selfCheckFailed, { backend: 'native' })).toMatchObject({ backend: 'native', isa: 'scalar' });
  });

  it('refuses a machine without SIMD where there is no addon either', () => {
    expect(() => selectBackend(withoutSimd)).toThrow(expect.objectContaining({ code: 'BACKEND_UNAVAILABLE' }));
  });
});

describe('--threads', () => {
  const cpus = (threads: number, machine = sapphireRapids) => selectBackend(machine, { threads }).cpus;

  it('beyond the cores takes their hyperthreads, and beyond those leaves it to the system', () => {
    expect(cpus(18)).toEqual([...Array.from({ length: 16 }, (_, core) => core), 16, 17]);
    expect(cpus(32)).toHaveLength(32);
    expect(cpus(33)).toBeNull();
    expect(cpus(3, oldLaptop)).toEqual([0, 2, 1]);
  });

  it('below the cores pins nobody: two servers of one machine would take the same cores', () => {
    expect(cpus(15)).toBeNull();
    expect(selectBackend(sapphireRapids, { threads: 15 }).threads).toBe(15);
  });

  it('says when ranks will wait for each other', () => {
    expect(selectBackend(zen5, { threads: 3 }).reasons.join('\n')).toContain(
      '3 ranks: as asked for by --threads; more',
    );
  });

  it.each([0, -1, 1.5, 257, Number.NaN])('refuses %s', (threads) => {
    expect(() => selectBackend(zen5, { threads })).toThrow(expect.objectContaining({ code: 'OPTION_INVALID' }));
  });
});

describe('detectMachine', () => {
  it('records this machine as plain data', () => {
    const machine = detectMachine(zen5.native, zen5.cuda);
    expect(structuredClone(machine)).toEqual(machine);
    expect(machine.cores).toBeGreaterThan(0);
    expect(machine.wasm).toEqual({ simd: true, relaxedSimd: true });
    expect(machine.memoryAvailable).toBeLessThanOrEqual(machine.memoryTotal);
    expect(selectBackend(machine).backend).toBe('native');
  });
});
