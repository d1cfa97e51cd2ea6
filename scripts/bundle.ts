/**
 * Bundles src/ and wasm/ into dist/: the command, the demonstration, and every module that the code starts as a worker or
 * process, which it names by entryFile('PATH'). The .wasm files and the native addon, where one was built, lie beside them;
 * npm packages stay outside.
 */
import { existsSync } from 'node:fs';
import { copyFile, readFile, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type BuildOptions, build } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));

const common = {
  absWorkingDir: root,
  bundle: true,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  packages: 'external',
  splitting: true,
  outdir: 'dist',
  logLevel: 'warning',
} as const satisfies BuildOptions;

function outputName(path: string): string {
  return path === 'src/cli/main' ? 'perigee' : basename(path);
}

/** The modules that `paths` and what they import start by entryFile(). */
async function startedBy(paths: readonly string[]): Promise<string[]> {
  const entryPoints = paths.map((path) => `${path}.ts`);
  const { metafile } = await build({ ...common, entryPoints, write: false, metafile: true });
  const texts = await Promise.all(Object.keys(metafile.inputs).map((input) => readFile(join(root, input), 'utf8')));
  return texts.flatMap((text) => [...text.matchAll(/entryFile\('([^']+)'\)/g)].map(([, path]) => path as string));
}

async function allEntries(known: readonly string[]): Promise<string[]> {
  const all = [...new Set([...known, ...(await startedBy(known))])];
  return all.length === known.length ? all : allEntries(all);
}

const entries = await allEntries(['src/cli/main', 'src/cli/demo']);
await rm(join(root, 'dist'), { recursive: true, force: true });
await build({
  ...common,
  entryPoints: entries.map((path) => ({ in: `${path}.ts`, out: outputName(path) })),
  chunkNames: 'chunk-[hash]',
  sourcemap: true,
});
for (const core of ['core-simd128.wasm', 'core-relaxed.wasm']) {
  await copyFile(join(root, 'build', core), join(root, 'dist', core));
}
const addon = join(root, 'build/native/perigee.node');
if (existsSync(addon)) await copyFile(addon, join(root, 'dist/perigee.node'));
