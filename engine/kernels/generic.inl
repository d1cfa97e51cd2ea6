// The fast kernels, once, over the SIMD layer. Each table's .cc includes this inside its own translation unit, so that
// every instantiation sees that table's operations.
#include <type_traits>

#include "../math.h"
#include "../quant/activation.h"
#include "../quant/dequantize.h"
#include "kernels.h"

namespace perigee {
namespace {

#include "lanes.inl"
#include "formats.inl"
#include "gemv.inl"
#include "panel.inl"
#include "panel_matmul.inl"
#include "floats.inl"
#include "elementwise.inl"
#include "attention.inl"

constexpr Kernels make_table(const char* name) {
  Kernels k = {};
  k.name = name;
  const auto set = [&k](DType type, MatmulFn quantized, MatmulFn exact) {
    k.matmul[uint32_t(type)][0] = quantized;
    k.matmul[uint32_t(type)][1] = exact;
  };
  using enum DType;
  set(F32, matmul_float<F32>, matmul_float<F32>);
  set(F16, matmul_float<F16>, matmul_float<F16>);
  set(BF16, matmul_float<BF16>, matmul_float<BF16>);
  set(Q4_0, matmul_fast<FormatQ4_0>, matmul_float<Q4_0>);
  set(Q4_1, matmul_plain<BlockQ4_1, true>, matmul_float<Q4_1>);
  set(Q5_0, matmul_fast<FormatQ5_0>, matmul_float<Q5_0>);
  set(Q5_1, matmul_plain<BlockQ5_1, true>, matmul_float<Q5_1>);
  set(Q8_0, matmul_fast<FormatQ8_0>, matmul_float<Q8_0>);
  set(IQ4_NL, matmul_plain<BlockIQ4_NL, false>, matmul_float<IQ4_NL>);
  set(Q2_K, matmul_plain<BlockQ2_K, true>, matmul_float<Q2_K>);
  set(Q3_K, matmul_plain<BlockQ3_K, false>, matmul_float<Q3_K>);
  set(Q4_K, matmul_fast<FormatQ4_K>, matmul_float<Q4_K>);
  set(Q5_K, matmul_fast<FormatQ5_K>, matmul_float<Q5_K>);
  set(Q6_K, matmul_fast<FormatQ6_K>, matmul_float<Q6_K>);
  set(IQ4_XS, matmul_plain<BlockIQ4_XS, false>, matmul_float<IQ4_XS>);
  k.dequantize = dequantize_row;
  k.quantize = quantize;
  k.rms_norm = rms_norm;
  k.silu_mul = silu_mul;
  k.sigmoid = sigmoid;
  k.softmax = softmax;
  k.axpy = axpy;
  k.twelve_bits = to_twelve_bits;
  k.attention = attention;
  return k;
}

}  // namespace
}  // namespace perigee
