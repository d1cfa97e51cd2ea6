// A row's values written in the forms that products read (rows.h).
#pragma once
#include "rows.h"

namespace perigee::cuda {

// Below this a group of 32 counts as zeros, as the engine's activation rows have it: 1 / scale would overflow.
constexpr float kSmallestPeak = 0x1p-100f;

__device__ inline void store_wide(bf16* to, float4 v) {
  union {
    __nv_bfloat162 pairs[2];
    uint2 bits;
  } four = {{__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)}};
  *reinterpret_cast<uint2*>(to) = four.bits;
}

// Writes columns column .. column + 3 of `row`. A whole warp calls it, lane l with the column of lane 0 plus 4 l, which is
// a multiple of 128; columns from rows.cols on are padding and must bring zeros.
__device__ inline void write_forms(const Rows& rows, uint32_t row, uint32_t column, float4 v) {
  if (column < rows.cols) {
    const size_t at = size_t(row) * rows.cols + column;
    if (rows.f32) *reinterpret_cast<float4*>(rows.f32 + at) = v;
    if (rows.wide) store_wide(rows.wide + at, v);
  }
  if (!rows.q) return;
  float peak = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
  for (int lanes = 4; lanes > 0; lanes /= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, lanes));
  const bool zero = peak < kSmallestPeak;
  const float scale = zero ? 0.0f : peak / 127.0f, inverse = zero ? 0.0f : 1.0f / scale;
  const auto quantize = [inverse](float x) { return max(-127, min(127, __float2int_rn(x * inverse))); };
  const int a = quantize(v.x), b = quantize(v.y), c = quantize(v.z), d = quantize(v.w);
  int sum = (a + b) + (c + d);
  for (int lanes = 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  const size_t at = size_t(row) * padded_cols(rows.cols) + column;
  *reinterpret_cast<char4*>(rows.q + at) = make_char4(a, b, c, d);
  if (column % 32 == 0) rows.scale[at / 32] = scale;
  if (column % 16 == 0) rows.sum[at / 16] = scale * sum;
}

}  // namespace perigee::cuda
