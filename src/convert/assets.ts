/** Where the encoder's worker and WASM module are. */
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

export function encodeWorkerFile(): string {
  return fileURLToPath(new URL('./encode-worker.ts', import.meta.url));
}

/** The engine's module, compiled; null when nothing needs encoding. */
export async function encoderModule(needed: boolean): Promise<WebAssembly.Module | null> {
  if (!needed) return null;
  const file = process.env.ENC_WASM ?? fileURLToPath(new URL('../../build/core-simd128.wasm', import.meta.url));
  return WebAssembly.compile(await readFile(file));
}
