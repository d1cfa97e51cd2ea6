// AVX-512 with VNNI: 512-bit kernels for quantized weights; the rest from the generic kernels.
#ifndef __clang__
// g++ 12 mistakes the deliberately undefined operands inside its own intrinsics for ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "simd_avx512.h"

#include "generic.inl"

namespace perigee {
namespace {

#include "avx512_wide.inl"
#include "avx512_formats.inl"
#include "avx512_gemv.inl"
#include "columns.inl"
#include "wide_panel.inl"
#include "avx512_panel.inl"
#include "avx512_quantize.inl"

// Up to how many activation rows decode is no slower than panels, from memory. Measured.
template <typename Format>
constexpr uint32_t kDecodeRows = 2;
template <>
constexpr uint32_t kDecodeRows<WideQ6_K> = 4;
template <>
constexpr uint32_t kDecodeRows<WideIQ4_XS> = 1;

#include "wide_table.inl"

constexpr Kernels make_avx512_table() {
  Kernels k = make_wide_table("avx512");
  k.quantize = wide_quantize;
  return k;
}

}  // namespace

constexpr Kernels kAvx512Kernels = make_avx512_table();

}  // namespace perigee
