/** A core in which attention forgets the newest position where it opens a page (broken_kernels.cc) must not pass. */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { conform } from '../../src/conform/conform.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import { pageTokens } from '../../src/runtime/runtime.ts';
import { someTokens, syntheticTestModel } from '../runtime/models.ts';

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const core = path('../../build/test/core-broken.wasm');

// `make test` builds it; vitest alone does not.
describe.skipIf(!existsSync(core))('a core with one wrong kernel (make test builds it)', () => {
  async function compare(tokens: number) {
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });
    const options = { ...model, backend: 'wasm', isa: 'simd128', threads: 2, taps: true, batchTokens: 64 } as const;
    const contestants = [
      { name: 'sound', load: () => loadRuntime(options) },
      { name: 'broken', load: () => loadRuntime({ ...options, core }) },
    ];
    const { candidates } = await conform(contestants, someTokens(tokens, model.config.vocabulary));
    return candidates[0]!;
  }

  it('passes as long as its fault does not show', async () => {
    expect(await compare(pageTokens)).toMatchObject({ agrees: true, first: null });
  });

  it('is caught at the tap after the kernel, in the first layer, at the first token it spoils', async () => {
    const { agrees, first, points } = await compare(pageTokens + 20);
    expect(agrees).toBe(false);
    expect(first).toMatchObject({ tap: 'attention', layer: 0, token: pageTokens });
    const attention = points.find(({ tap, layer }) => tap === 'attention' && layer === 0);
    expect(attention).toMatchObject({ differingTokens: 1, within: false });
    const latent = points.find(({ tap, layer }) => tap === 'latent' && layer === 0);
    expect(latent).toMatchObject({ differing: 0, within: true });
  });

  it('makes the command name layer, tap and backend, write its report, and exit with 1', async () => {
    const report = join(mkdtempSync(join(tmpdir(), 'perigee-broken-')), 'report.html');
    const run = async (...args: string[]) => {
      const child = spawn(process.execPath, [path('broken-main.ts'), core, report, ...args]);
      const code = new Promise((resolve) => child.on('close', resolve));
      return { stdout: await text(child.stdout), code: await code };
    };
    const { stdout, code } = await run();
    expect(stdout).toMatch(
      /broken differs from wasm:simd128 first in layer 0, attention, token 64, channel \d+: broken/,
    );
    expect(code).toBe(1);
    expect(await readFile(report, 'utf8')).toContain('first: attention, token 64');
    const asJson = await run('json');
    expect(JSON.parse(asJson.stdout)).toMatchObject({
      reference: { name: 'wasm:simd128', backend: 'wasm', isa: 'simd128' },
      candidates: [{ name: 'broken', agrees: false, first: { tap: 'attention', layer: 0, token: 64 } }],
    });
    expect(asJson.code).toBe(1);
  });
});
