// AVX2: the generic kernels with 128-bit integers and 256-bit floats.
#include "simd_avx2.h"

#include "generic.inl"

namespace perigee {

constexpr Kernels kAvx2Kernels = make_table("avx2");

}  // namespace perigee
