// The AMX table: prefill of superblocks by tiles, everything else the avx512 table's, one call away. (Blocks of 32 give a
// tile one product between float terms: 102 to 226 Gop/s a thread were measured, of vectors 151 to 320. A copied table would
// be filled when the addon is loaded, by instructions that the machine may lack.)
#ifndef __clang__
// As in avx512.cc (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#include <stddef.h>

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

// Rows of a strip's second panel; and activation rows: on 16 threads of a Sapphire Rapids 16 of them took 1.1 (Q4_K) to 1.2
// (Q6_K) times as long as in the avx512 table, 48 of them 1.0 and 0.85 times.
constexpr uint32_t kFewestRows = 17, kFewestTokens = 24;

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

template <DType... kTypes>
constexpr void forward(Kernels& k) {
  ((k.matmul[uint32_t(kTypes)][0] = vector_matmul<kTypes, 0>), ...);
  ((k.matmul[uint32_t(kTypes)][1] = vector_matmul<kTypes, 1>), ...);
}

template <DType kType, typename Format>
constexpr void set_tiles(Kernels& k) {
  k.matmul[uint32_t(kType)][0] = matmul<kType, Format>;
}

constexpr Kernels make_table() {
  Kernels k = {};
  k.name = "amx";
  using enum DType;
  forward<F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q4_K, Q5_K, Q6_K, Q2_K, Q3_K, IQ4_XS>(k);
  set_tiles<Q4_K, TilesQ4_K>(k);
  set_tiles<Q5_K, TilesQ5_K>(k);
  set_tiles<Q6_K, TilesQ6_K>(k);
  set_tiles<Q2_K, TilesQ2_K>(k);
  set_tiles<Q3_K, TilesQ3_K>(k);
  set_tiles<IQ4_XS, TilesIQ4_XS>(k);
  k.dequantize = vector_kernel<&Kernels::dequantize>;
  k.quantize = vector_kernel<&Kernels::quantize>;
  k.rms_norm = vector_kernel<&Kernels::rms_norm>;
  k.silu_mul = vector_kernel<&Kernels::silu_mul>;
  k.sigmoid = vector_kernel<&Kernels::sigmoid>;
  k.softmax = vector_kernel<&Kernels::softmax>;
  k.axpy = vector_kernel<&Kernels::axpy>;
  k.twelve_bits = vector_kernel<&Kernels::twelve_bits>;
  k.attention = vector_kernel<&Kernels::attention>;
  return k;
}

}  // namespace

constexpr Kernels kAmxKernels = make_table();

}  // namespace perigee
