import { describe, expect, it } from 'vitest';
import { detectMachine, type Machine } from '../../src/select/machine.ts';
import { selectBackend } from '../../src/select/select.ts';

/** Machines as detectMachine() recorded them, or would have. */
const zen4: Machine = {
  cpu: 'AMD EPYC 9R14',
  platform: 'linux x64',
  node: '24.21.0',
  cores: 2,
  physicalCores: 1,
  memoryTotal: 16e9,
  memoryAvailable: 12e9,
  wasm: { simd: true, relaxedSimd: true },
};
const node20WithoutFlag: Machine = { ...zen4, node: '20.20.2', wasm: { simd: true, relaxedSimd: false } };
const withoutSimd: Machine = { ...zen4, wasm: { simd: false, relaxedSimd: false } };
const manyCores: Machine = { ...zen4, cores: 384, physicalCores: 192 };

describe('selectBackend', () => {
  it('takes relaxed SIMD and a rank for each available core where nothing is asked for', () => {
    expect(selectBackend(zen4)).toMatchObject({ backend: 'wasm', isa: 'relaxed', core: 'relaxed', threads: 2 });
  });

  it('gives a reason for every rejected alternative', () => {
    const { reasons } = selectBackend(zen4);
    for (const name of ['native', 'hybrid', 'cuda', 'simd128', 'scalar']) {
      expect(reasons.filter((line) => line.startsWith(`${name}: rejected, `))).toHaveLength(1);
    }
  });

  it('takes SIMD128 where Node has no relaxed SIMD, and says so', () => {
    const plan = selectBackend(node20WithoutFlag);
    expect(plan).toMatchObject({ isa: 'simd128', core: 'simd128' });
    expect(plan.reasons).toContain('relaxed: rejected, Node 20.20.2 does not compile WebAssembly relaxed SIMD');
  });

  it('honours --isa and --threads', () => {
    expect(selectBackend(zen4, { isa: 'scalar', threads: 3 })).toMatchObject({
      isa: 'scalar',
      core: 'simd128',
      threads: 3,
    });
  });

  it('never makes more ranks than the core can number', () => {
    expect(selectBackend(manyCores).threads).toBe(256);
  });

  it.each(['native', 'hybrid', 'cuda', 'tpu'])('refuses backend %s by name', (backend) => {
    expect(() => selectBackend(zen4, { backend })).toThrow(
      expect.objectContaining({
        code: 'BACKEND_UNAVAILABLE',
        exitCode: 2,
        message: expect.stringContaining(`'${backend}'`),
      }),
    );
  });

  it.each([
    ['relaxed', node20WithoutFlag],
    ['avx512', zen4],
  ])('refuses kernel set %s where it cannot run', (isa, machine) => {
    expect(() => selectBackend(machine, { isa })).toThrow(expect.objectContaining({ code: 'ISA_UNAVAILABLE' }));
  });

  it('refuses a machine without SIMD', () => {
    expect(() => selectBackend(withoutSimd)).toThrow(expect.objectContaining({ code: 'BACKEND_UNAVAILABLE' }));
  });

  it.each([0, -1, 1.5, 257, Number.NaN])('refuses %s threads', (threads) => {
    expect(() => selectBackend(zen4, { threads })).toThrow(expect.objectContaining({ code: 'OPTION_INVALID' }));
  });
});

describe('detectMachine', () => {
  it('records this machine as plain data', () => {
    const machine = detectMachine();
    expect(structuredClone(machine)).toEqual(machine);
    expect(machine.cores).toBeGreaterThan(0);
    expect(machine.wasm).toEqual({ simd: true, relaxedSimd: true });
    expect(machine.memoryAvailable).toBeLessThanOrEqual(machine.memoryTotal);
  });
});
