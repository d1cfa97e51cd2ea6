/** The AMX table's bits, on machines without AMX: the same source over emulated tiles, in a program of its own. */
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { arch } from 'node:process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));
const program = 'build/native/kernel-check-emulated';

/** Why the program cannot run here, or null. */
function missing(): string | null {
  if (arch !== 'x64') return 'this is no x86-64 machine';
  if (spawnSync('g++', ['--version']).status !== 0) return 'g++ is missing';
  return readFileSync('/proc/cpuinfo', 'utf8').includes('avx512_vnni') ? null : 'this CPU has no AVX-512 VNNI';
}

const why = missing();

describe('the AMX table', () => {
  it.skipIf(why !== null)(
    `equals the scalar one, tile by emulated tile${why === null ? '' : ` (skipped: ${why})`}`,
    () => {
      execFileSync('make', ['--no-print-directory', program], { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] });
      const run = spawnSync(program, ['--check'], { cwd: root, encoding: 'utf8' });
      expect(run.stdout).toMatch(/^amx +[1-9]\d+ products, 0 differ/m);
      expect(run.status).toBe(0);
    },
    300_000,
  );
});
