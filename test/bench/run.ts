/** `make bench`: kernels by type, then bench-1b end to end, each beside the machine's limits. Options go to `perigee bench`. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

function run(path: string, args: readonly string[]): void {
  const { status } = spawnSync(process.execPath, [fileURLToPath(new URL(path, import.meta.url)), ...args], {
    stdio: 'inherit',
  });
  if (status !== 0) process.exit(status ?? 1);
}

const options = process.argv.slice(2);
run('./kernels.ts', []);
run('../../src/cli/main.ts', [
  'bench',
  ...(options.length > 0 ? options : ['--shape', 'bench-1b', '--prefill', '128']),
]);
