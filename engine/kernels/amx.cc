// The AMX table: prefill by tiles, everything else the avx512 table's, one call away. (A copied table would be filled when
// the addon is loaded, by instructions that the machine may lack.)
#ifndef __clang__
// As in avx512.cc (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#include <stddef.h>

#include <type_traits>

#include "../quant/activation.h"
#include "../quant/dequantize.h"
#include "amx_tile.h"
#include "compiler.h"
#include "kernels.h"

namespace perigee {
namespace {

#include "amx_decode.inl"
#include "amx_super.inl"
#include "amx_matmul.inl"

// Fewer activation rows or weight rows leave tiles emptier than their decoding is worth.
constexpr uint32_t kFewestTokens = 8, kFewestRows = 16;

template <DType kType, typename Format>
void matmul(const MatmulArgs& a) {
  if (a.n < kFewestTokens || a.rows < kFewestRows) kAvx512Kernels.matmul[uint32_t(kType)][0](a);
  else tile_matmul<Format>(a);
}

template <DType kType, int kExact>
void vector_matmul(const MatmulArgs& a) {
  kAvx512Kernels.matmul[uint32_t(kType)][kExact](a);
}

template <auto kField, typename... Args>
void vector_kernel(Args... args) {
  (kAvx512Kernels.*kField)(args...);
}

constexpr Kernels make_table() {
  Kernels k = {};
  k.name = "amx";
  const auto set = [&k](DType type, MatmulFn quantized, MatmulFn exact) {
    k.matmul[uint32_t(type)][0] = quantized;
    k.matmul[uint32_t(type)][1] = exact;
  };
  using enum DType;
  set(F32, vector_matmul<F32, 0>, vector_matmul<F32, 1>);
  set(F16, vector_matmul<F16, 0>, vector_matmul<F16, 1>);
  set(BF16, vector_matmul<BF16, 0>, vector_matmul<BF16, 1>);
  set(Q4_0, matmul<Q4_0, TilesQ4<BlockQ4_0, false>>, vector_matmul<Q4_0, 1>);
  set(Q4_1, matmul<Q4_1, TilesQ4<BlockQ4_1, true>>, vector_matmul<Q4_1, 1>);
  set(Q5_0, matmul<Q5_0, TilesQ5<BlockQ5_0, false>>, vector_matmul<Q5_0, 1>);
  set(Q5_1, matmul<Q5_1, TilesQ5<BlockQ5_1, true>>, vector_matmul<Q5_1, 1>);
  set(Q8_0, matmul<Q8_0, TilesQ8_0>, vector_matmul<Q8_0, 1>);
  set(IQ4_NL, matmul<IQ4_NL, TilesIQ4_NL>, vector_matmul<IQ4_NL, 1>);
  set(Q4_K, matmul<Q4_K, TilesQ4_K>, vector_matmul<Q4_K, 1>);
  set(Q5_K, matmul<Q5_K, TilesQ5_K>, vector_matmul<Q5_K, 1>);
  set(Q6_K, matmul<Q6_K, TilesQ6_K>, vector_matmul<Q6_K, 1>);
  set(Q2_K, matmul<Q2_K, TilesQ2_K>, vector_matmul<Q2_K, 1>);
  set(Q3_K, matmul<Q3_K, TilesQ3_K>, vector_matmul<Q3_K, 1>);
  set(IQ4_XS, matmul<IQ4_XS, TilesIQ4_XS>, vector_matmul<IQ4_XS, 1>);
  k.dequantize = vector_kernel<&Kernels::dequantize>;
  k.quantize = vector_kernel<&Kernels::quantize>;
  k.rms_norm = vector_kernel<&Kernels::rms_norm>;
  k.silu_mul = vector_kernel<&Kernels::silu_mul>;
  k.sigmoid = vector_kernel<&Kernels::sigmoid>;
  k.softmax = vector_kernel<&Kernels::softmax>;
  k.axpy = vector_kernel<&Kernels::axpy>;
  k.attention = vector_kernel<&Kernels::attention>;
  return k;
}

}  // namespace

constexpr Kernels kAmxKernels = make_table();

}  // namespace perigee
