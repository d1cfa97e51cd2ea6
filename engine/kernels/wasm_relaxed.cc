// Relaxed WebAssembly SIMD: the 8-bit dot, exact because one operand always lies in 0..127.
#define PERIGEE_USE_RELAXED_DOT
#include "simd_wasm.h"

#include "generic.inl"

namespace perigee {

constexpr Kernels kRelaxedKernels = make_table("relaxed");

}  // namespace perigee
