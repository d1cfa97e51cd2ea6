// Plain WebAssembly SIMD: runs wherever WebAssembly does.
#include "simd_wasm.h"

#include "generic.inl"

namespace perigee {

constexpr Kernels kSimd128Kernels = make_table("simd128");

}  // namespace perigee
