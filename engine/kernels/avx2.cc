// AVX2: 256-bit kernels for quantized weights; the rest from the generic kernels.
#include "simd_avx2.h"

#include "generic.inl"

namespace perigee {
namespace {

#include "avx2_wide.inl"
#include "avx2_formats.inl"
#include "columns.inl"
#include "wide_panel.inl"
#include "avx2_gemv.inl"
#include "avx2_panel.inl"

// Up to how many activation rows decode is no slower than panels, from memory. Measured.
template <typename Format>
constexpr uint32_t kDecodeRows = 2;
template <>
constexpr uint32_t kDecodeRows<WideQ6_K> = 4;
template <>
constexpr uint32_t kDecodeRows<WideQ3_K> = 4;

#include "wide_table.inl"

}  // namespace

constexpr Kernels kAvx2Kernels = make_wide_table("avx2");

}  // namespace perigee
