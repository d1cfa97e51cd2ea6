/** Which WebAssembly instructions this Node compiles, found by validating modules of one function. */
import { setFlagsFromString } from 'node:v8';

export interface WasmFeatures {
  readonly simd: boolean;
  readonly relaxedSimd: boolean;
}

const header = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];
const typeReturningV128 = [0x01, 0x05, 0x01, 0x60, 0x00, 0x01, 0x7b];
const oneFunction = [0x03, 0x02, 0x01, 0x00];
/** i32.const 0, i8x16.splat */
const zeros = [0x41, 0x00, 0xfd, 0x0f];
/** i16x8.relaxed_dot_i8x16_i7x16_s */
const relaxedDot = [0xfd, 0x92, 0x02];

function compiles(...instructions: number[]): boolean {
  const body = [0x00, ...instructions, 0x0b];
  const code = [0x0a, body.length + 2, 0x01, body.length, ...body];
  return WebAssembly.validate(new Uint8Array([...header, ...typeReturningV128, ...oneFunction, ...code]));
}

/** Tests this process. Node 20 has relaxed SIMD behind a flag, which holds for every module compiled from here on. */
export function wasmFeatures(): WasmFeatures {
  if (Number.parseInt(process.versions.node, 10) < 22) setFlagsFromString('--experimental-wasm-relaxed-simd');
  return { simd: compiles(...zeros), relaxedSimd: compiles(...zeros, ...zeros, ...relaxedDot) };
}
