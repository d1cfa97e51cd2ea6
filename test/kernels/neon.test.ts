/** The NEON table on machines without an ARM CPU: run by an emulator where one is, else at least compiled. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));
const FLAGS = '-std=c++20 -O2 -ffp-contract=off -fno-exceptions -fno-rtti -Wall -Wextra -Werror'.split(' ');
const SOURCES = ['kernels/neon', 'kernels/scalar', 'quant/dequantize', 'quant/activation', 'tensor'];

const GCC = 'aarch64-linux-gnu-g++';
const EMULATOR = 'qemu-aarch64';
// The clang and the C++ headers that scripts/get-emscripten.sh brings.
const LLVM = `${root}.toolchain/llvm/usr/lib`;
const CLANG = `${LLVM}/llvm-19/bin/clang++`;
const HEADERS = `${root}.toolchain/usr/share/emscripten/system/lib/libcxx/include`;

/** The first of `programs` that does not start, or null. */
function missing(...programs: string[]): string | null {
  return programs.find((name) => spawnSync(name, ['--version']).status !== 0) ?? null;
}

function because(reason: string | null): string {
  return reason === null ? '' : ` (skipped: ${reason} is missing)`;
}

const emulation = missing(GCC, EMULATOR);
const clang = existsSync(CLANG) ? null : 'the toolchain of scripts/get-emscripten.sh';

describe('the NEON table', () => {
  it.skipIf(emulation !== null)(
    `gives the scalar table's bits on an emulated ARM CPU${because(emulation)}`,
    () => {
      const program = `${root}build/test/neon-check`;
      mkdirSync(`${root}build/test`, { recursive: true });
      const sources = [...SOURCES.map((name) => `engine/${name}.cc`), 'test/kernels/neon-check.cc'];
      execFileSync(GCC, [...FLAGS, '-static', ...sources, '-o', program], { cwd: root });
      const run = spawnSync(EMULATOR, [program], { encoding: 'utf8' });
      expect(run.stdout).toMatch(/^neon [1-9]\d+ comparisons, 0 differ$/m);
      expect(run.status).toBe(0);
    },
    300_000,
  );

  it.skipIf(clang !== null)(
    `compiles for 64-bit ARM${because(clang)}`,
    () => {
      const libraries = [`${LLVM}/x86_64-linux-gnu`, `${LLVM}/aarch64-linux-gnu`, `${LLVM}/llvm-19/lib`].join(':');
      // No system's headers: those of the machine are for another CPU. The C++ library wants to know about threads.
      const system = '--target=aarch64-none-elf -ffreestanding -nostdlibinc -nostdinc++ -D_LIBCPP_HAS_NO_THREADS';
      const target = [...system.split(' '), '-isystem', HEADERS];
      const args = [...target, ...FLAGS, '-c', 'engine/kernels/neon.cc', '-o', '/dev/null'];
      const run = spawnSync(CLANG, args, {
        cwd: root,
        encoding: 'utf8',
        env: { ...process.env, LD_LIBRARY_PATH: libraries },
      });
      expect(run.stderr).toBe('');
      expect(run.status).toBe(0);
    },
    300_000,
  );
});
