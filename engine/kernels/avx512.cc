// AVX-512 with VNNI: 512-bit kernels for quantized weights; the rest from the generic kernels.
#ifndef __clang__
// g++ 12 mistakes the deliberately undefined operands inside its own intrinsics for ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <utility>

#include "simd_avx512.h"

#include "generic.inl"

namespace perigee {
namespace {

#include "avx512_formats.inl"
#include "avx512_gemv.inl"
#include "avx512_columns.inl"
#include "avx512_panel.inl"

// Up to how many activation rows decode is no slower than panels, from memory. Measured.
template <typename Format>
constexpr uint32_t kDecodeRows = 2;
template <>
constexpr uint32_t kDecodeRows<WideQ6_K> = 4;
template <>
constexpr uint32_t kDecodeRows<WideIQ4_XS> = 1;

template <typename Format, uint32_t kN = 1>
void wide_matmul(const MatmulArgs& a) {
  if constexpr (kN <= kDecodeRows<Format>) {
    if (a.n == kN) wide_gemv<Format, kN>(a);
    else wide_matmul<Format, kN + 1>(a);
  } else {
    wide_panels<Format>(a);
  }
}

constexpr Kernels make_wide_table() {
  Kernels k = make_table("avx512");
  const auto set = [&k](DType type, MatmulFn quantized) { k.matmul[uint32_t(type)][0] = quantized; };
  using enum DType;
  set(Q4_0, wide_matmul<WideQ4_0>);
  set(Q4_1, wide_matmul<WideQ4_1>);
  set(Q5_0, wide_matmul<WideQ5_0>);
  set(Q5_1, wide_matmul<WideQ5_1>);
  set(Q8_0, wide_matmul<WideQ8_0>);
  set(IQ4_NL, wide_matmul<WideIQ4_NL>);
  set(Q2_K, wide_matmul<WideQ2_K>);
  set(Q3_K, wide_matmul<WideQ3_K>);
  set(Q4_K, wide_matmul<WideQ4_K>);
  set(Q5_K, wide_matmul<WideQ5_K>);
  set(Q6_K, wide_matmul<WideQ6_K>);
  set(IQ4_XS, wide_matmul<WideIQ4_XS>);
  return k;
}

}  // namespace

constexpr Kernels kAvx512Kernels = make_wide_table();

}  // namespace perigee
