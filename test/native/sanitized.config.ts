/** The runtime's tests against build/asan/perigee.node; `make asan` sets the environment that it needs. */
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/runtime/native*.test.ts', 'test/runtime/expert-ranks.test.ts', 'test/native/*.test.ts'],
    setupFiles: ['test/native/use-sanitized.ts'],
    pool: 'forks',
    maxWorkers: 1,
    testTimeout: 300_000,
  },
});
