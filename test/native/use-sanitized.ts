/** Puts the sanitized addon in the place of the plain one. */
import { fileURLToPath } from 'node:url';
import { vi } from 'vitest';

vi.mock('../../src/runtime/assets.ts', async (original) => ({
  ...(await original<typeof import('../../src/runtime/assets.ts')>()),
  addonFile: fileURLToPath(new URL('../../build/asan/perigee.node', import.meta.url)),
}));
