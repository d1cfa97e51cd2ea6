// 64-bit ARM: the generic kernels in 128-bit vectors.
#include "simd_neon.h"

#include "generic.inl"

namespace perigee {

constexpr Kernels kNeonKernels = make_table("neon");

}  // namespace perigee
