/** The same fault in a native addon: natively wrong kernels are caught by a sound WebAssembly run. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, it, vi } from 'vitest';
import { conform } from '../../src/conform/conform.ts';
import { loadRuntime } from '../../src/runtime/load.ts';
import { nativeSupport } from '../../src/runtime/native-addon.ts';
import { pageTokens } from '../../src/runtime/runtime.ts';
import { someTokens, syntheticTestModel } from '../runtime/models.ts';

const addon = vi.hoisted(() => ({ file: '' }));
addon.file = fileURLToPath(new URL('../../build/test/broken.node', import.meta.url));
vi.mock('../../src/runtime/assets.ts', async (original) => ({
  ...(await original<typeof import('../../src/runtime/assets.ts')>()),
  get addonFile() {
    return addon.file;
  },
}));

// `make test` builds it where there is a C++ compiler.
it.skipIf(!existsSync(addon.file))(
  'a wrong kernel in the addon is caught and named (make test builds it)',
  async () => {
    // The self-check at load looks at kernels, each for a moment; it does not meet the first position of a second page.
    expect(nativeSupport()).toMatchObject({ available: true });
    const model = await syntheticTestModel({ shape: 'tiny', mix: 'q4_k_m' });
    const load = (backend: 'wasm' | 'native') => ({
      name: backend,
      load: () => loadRuntime({ ...model, backend, threads: 2, taps: true, batchTokens: 64 }),
    });
    const tokens = someTokens(pageTokens + 20, model.config.vocabulary);
    const { candidates } = await conform([load('wasm'), load('native')], tokens);
    expect(candidates[0]).toMatchObject({
      name: 'native',
      backend: 'native',
      band: { limits: null },
      agrees: false,
      first: { tap: 'attention', layer: 0, token: pageTokens },
    });
  },
);
