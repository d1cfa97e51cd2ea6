import { mkdtempSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { cudaSupport } from '../../src/runtime/cuda-addon.ts';
import { nativeSupport } from '../../src/runtime/native-addon.ts';
import { perigee } from '../cli/run-command.ts';

const folder = mkdtempSync(join(tmpdir(), 'perigee-conform-command-'));
const tables = 'wasm,wasm:simd128,wasm:scalar';
const native = nativeSupport();

describe('perigee conform', () => {
  it('finds the kernel tables of WebAssembly equal on Nano, and exits with 0', async () => {
    const report = join(folder, 'report.html');
    const { code, stdout } = await perigee(['conform', '--backends', tables, '--report', report, '--json']);
    expect(code).toBe(0);
    const { tokens, reference, candidates } = JSON.parse(stdout);
    expect(tokens.length).toBeGreaterThan(64);
    expect(reference).toMatchObject({ name: 'wasm', backend: 'wasm' });
    expect(candidates).toMatchObject([
      { name: 'wasm:simd128', isa: 'simd128', band: 'equal bits', agrees: true, first: null },
      { name: 'wasm:scalar', isa: 'scalar', band: 'equal bits', agrees: true, first: null },
    ]);
    expect(candidates[0].points.at(-1)).toMatchObject({ tap: 'logits', differing: 0, nmse: 0, max_abs: 0 });
    expect((await readFile(report, 'utf8')).match(/<svg/g)).toHaveLength(8);
  });

  it.skipIf(!native.available)('finds every native table this CPU runs equal to WebAssembly on Nano', async () => {
    const isas = native.available ? native.isas : [];
    const backends = ['wasm', ...isas.map((isa) => `native:${isa}`)].join(',');
    const { code, stdout } = await perigee(['conform', '--backends', backends, '--json']);
    const { candidates } = JSON.parse(stdout);
    expect(candidates.map(({ isa, first }: { isa: string; first: unknown }) => ({ isa, first }))).toEqual(
      isas.map((isa) => ({ isa, first: null })),
    );
    expect(code).toBe(0);
  });

  it('prints a row for each kind of tap and a verdict', async () => {
    const { stdout } = await perigee(['conform', '--backends', 'wasm,wasm', '--prompt', 'Good morning']);
    for (const tap of [
      'embedding',
      'latent',
      'attention',
      'router-scores',
      'router-choices',
      'feed-forward',
      'residual',
    ])
      expect(stdout).toMatch(new RegExp(`^${tap} +0 of \\d+`, 'm'));
    expect(stdout).toContain('wasm agrees with wasm: equal bits at every tap of every layer');
  });

  it('holds a GPU to bands, and a hybrid of it with either kind of ranks', async ({ skip }) => {
    const cuda = cudaSupport();
    if (!cuda.available) skip(cuda.why);
    const backends = 'native,cuda,hybrid,hybrid:relaxed';
    const { code, stdout } = await perigee(['conform', '--backends', backends, '--json']);
    const { candidates } = JSON.parse(stdout);
    for (const { name, band, first, agrees } of candidates) {
      expect({ name, band, first, agrees }).toEqual({
        name,
        band: expect.stringContaining('NMSE'),
        first: null,
        agrees: true,
      });
    }
    expect([code, candidates.length]).toEqual([0, 3]);
  });

  it('runs given token ids', async () => {
    const file = join(folder, 'tokens.json');
    await writeFile(file, '[7, 8, 9]');
    const { stdout } = await perigee(['conform', '--backends', 'wasm,wasm', '--tokens', file, '--json']);
    expect(JSON.parse(stdout).tokens).toEqual([7, 8, 9]);
  });

  it.each([
    ['one backend only', ['--backends', 'wasm']],
    ['a backend that does not exist', ['--backends', 'wasm,abacus']],
    ['a GPU as the reference', ['--backends', 'cuda,wasm']],
    ['kernels that a GPU has not', ['--backends', 'wasm,cuda:avx2']],
    ['kernels of another backend', ['--backends', 'wasm,wasm:avx2']],
    ['an empty prompt', ['--backends', 'wasm,wasm', '--prompt', '']],
    ['several prompts', ['--backends', 'wasm,wasm', '--tokens', '-'], '[[1, 2], [3]]'],
    ['a token that does not exist', ['--backends', 'wasm,wasm', '--tokens', '-'], '[999999]'],
  ])('refuses %s', async (_, args, input = '') => {
    expect(await perigee(['conform', ...args], { input })).toMatchObject({ code: 2, stdout: '' });
  });
});
