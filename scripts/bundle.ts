/**
 * Bundles src/ and wasm/ into dist/: the command, the demonstration, and every module that another one starts by
 * `new URL('./worker.ts', import.meta.url)`. In dist/ all of them and the .wasm files lie side by side, so those addresses
 * are rewritten; npm packages stay outside.
 */
import { copyFile, readFile, rm } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, type Plugin } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));
const commands = ['src/cli/main.ts', 'src/cli/demo.ts'];
const outputNames: Record<string, string> = { main: 'perigee' };

/** new URL('PATH', import.meta.url), also with a template string and over several lines */
const address = /new URL\(\s*(['"`])([^'"`]+)\1,\s*import\.meta\.url,?\s*\)/g;

function outputName(file: string): string {
  const name = basename(file, '.ts');
  return outputNames[name] ?? name;
}

/** Where an address of the source tree is in dist/. */
function distAddress(path: string): string {
  if (path.endsWith('.ts')) return `./${outputName(path)}.js`;
  if (path.startsWith('../../build/')) return path.replace('../../build/', './');
  if (path.startsWith('../../models/')) return path.replace('../../', '../');
  throw new Error(`bundle: no rule for the address '${path}'`);
}

/** The modules that `file` and what it imports start as workers or processes. */
async function startedModules(files: readonly string[]): Promise<string[]> {
  const found = await build({ ...common, entryPoints: [...files], write: false, metafile: true, outdir: 'dist', logLevel: 'error' });
  const started = new Set<string>();
  for (const input of Object.keys(found.metafile.inputs)) {
    const text = await readFile(join(root, input), 'utf8');
    for (const [, , path] of text.matchAll(address)) {
      if (path?.endsWith('.ts')) started.add(resolve(root, dirname(input), path));
    }
  }
  return [...started];
}

const moveAddresses: Plugin = {
  name: 'move-addresses',
  setup({ onLoad }) {
    onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      const text = await readFile(path, 'utf8');
      const contents = text.replaceAll(address, (_, quote, target) => {
        return `new URL(${quote}${distAddress(target)}${quote}, import.meta.url)`;
      });
      return { contents, loader: 'ts' };
    });
  },
};

const common = {
  absWorkingDir: root,
  bundle: true,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  packages: 'external',
  splitting: true,
  sourcemap: true,
} as const;

let entries = commands.map((path) => resolve(root, path));
for (;;) {
  const all = new Set([...entries, ...(await startedModules(entries))]);
  if (all.size === entries.length) break;
  entries = [...all];
}
const names = entries.map(outputName);
if (new Set(names).size !== names.length) throw new Error(`bundle: two entries share a name: ${names.join(', ')}`);

await rm(join(root, 'dist'), { recursive: true, force: true });
await build({
  ...common,
  plugins: [moveAddresses],
  entryPoints: entries.map((path) => ({ in: path, out: outputName(path) })),
  chunkNames: 'chunks-[hash]',
  outdir: 'dist',
  logLevel: 'warning',
});
for (const core of ['core-simd128.wasm', 'core-relaxed.wasm']) {
  await copyFile(join(root, 'build', core), join(root, 'dist', core));
}
