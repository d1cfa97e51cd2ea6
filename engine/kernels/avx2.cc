// AVX2: the generic kernels in 128-bit integer vectors.
#include "simd_x86.h"

#include "generic.inl"

namespace perigee {

constexpr Kernels kAvx2Kernels = make_table("avx2");

}  // namespace perigee
