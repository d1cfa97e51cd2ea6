/** Where the files beside the code are: in the source tree under Node's type stripping, in dist/ once bundled. */
import { fileURLToPath } from 'node:url';

const bundled = !import.meta.url.endsWith('.ts');
const at = (source: string, dist: string): string =>
  fileURLToPath(new URL(bundled ? dist : `../../${source}`, import.meta.url));

/** A worker or process entry: 'wasm/rank' is wasm/rank.ts here and rank.js in dist/. */
export function entryFile(path: string): string {
  return at(`${path}.ts`, `./${path.slice(path.lastIndexOf('/') + 1)}.js`);
}

/** The compiled core. */
export function coreFile(build: 'simd128' | 'relaxed'): string {
  return at(`build/core-${build}.wasm`, `./core-${build}.wasm`);
}

/** The native addon; absent where it was built without a C++ compiler. */
export const addonFile = at('build/native/perigee.node', './perigee.node');

/** The model that travels with Perigee. */
export const nanoFile = at('models/nano.gguf', '../models/nano.gguf');
