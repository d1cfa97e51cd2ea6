// Single codes and scales of the file's blocks, read on the device when a matrix is packed (engine/quant/dequantize.cc
// has their meaning). Speed hardly matters here: a byte is read for every code.
#pragma once
#include <cuda_fp16.h>

#include "../../engine/quant/blocks.h"
#include "../../engine/tensor.h"

namespace perigee::cuda {

template <DType>
struct BlockOf;
template <>
struct BlockOf<DType::Q4_0> {
  using Type = BlockQ4_0;
};
template <>
struct BlockOf<DType::Q4_1> {
  using Type = BlockQ4_1;
};
template <>
struct BlockOf<DType::Q5_0> {
  using Type = BlockQ5_0;
};
template <>
struct BlockOf<DType::Q5_1> {
  using Type = BlockQ5_1;
};
template <>
struct BlockOf<DType::Q8_0> {
  using Type = BlockQ8_0;
};
template <>
struct BlockOf<DType::IQ4_NL> {
  using Type = BlockIQ4_NL;
};
template <>
struct BlockOf<DType::Q2_K> {
  using Type = BlockQ2_K;
};
template <>
struct BlockOf<DType::Q3_K> {
  using Type = BlockQ3_K;
};
template <>
struct BlockOf<DType::Q4_K> {
  using Type = BlockQ4_K;
};
template <>
struct BlockOf<DType::Q5_K> {
  using Type = BlockQ5_K;
};
template <>
struct BlockOf<DType::Q6_K> {
  using Type = BlockQ6_K;
};
template <>
struct BlockOf<DType::IQ4_XS> {
  using Type = BlockIQ4_XS;
};

__device__ inline float half_value(half bits) { return __half2float(__ushort_as_half(bits)); }

constexpr uint64_t iq4_values(int from) {
  uint64_t packed = 0;
  for (int i = 0; i < 8; i++) packed |= uint64_t(uint8_t(kIQ4Values[from + i])) << 8 * i;
  return packed;
}
__device__ inline int iq4_value(int code) {
  constexpr uint64_t kLow = iq4_values(0), kHigh = iq4_values(8);
  return int8_t((code < 8 ? kLow : kHigh) >> 8 * (code % 8) & 255);
}

__device__ inline int nibble(int byte, bool high) { return high ? byte >> 4 : byte & 15; }
__device__ inline int fifth_bit(const uint8_t qh[4], uint32_t i) { return qh[i / 8] >> i % 8 & 1; }

// Code of element i; types without mins bring their offset along, so that value = scale * code (- min).
__device__ inline int code_of(const BlockQ4_0& b, uint32_t i) { return nibble(b.qs[i % 16], i >= 16) - 8; }
__device__ inline int code_of(const BlockQ4_1& b, uint32_t i) { return nibble(b.qs[i % 16], i >= 16); }
__device__ inline int code_of(const BlockQ5_0& b, uint32_t i) {
  return (nibble(b.qs[i % 16], i >= 16) | fifth_bit(b.qh, i) << 4) - 16;
}
__device__ inline int code_of(const BlockQ5_1& b, uint32_t i) {
  return nibble(b.qs[i % 16], i >= 16) | fifth_bit(b.qh, i) << 4;
}
__device__ inline int code_of(const BlockQ8_0& b, uint32_t i) { return b.qs[i]; }
__device__ inline int code_of(const BlockIQ4_NL& b, uint32_t i) { return iq4_value(nibble(b.qs[i % 16], i >= 16)); }
__device__ inline int code_of(const BlockQ2_K& b, uint32_t i) {
  return b.qs[i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3;
}
__device__ inline int code_of(const BlockQ3_K& b, uint32_t i) {
  const int third = b.hmask[i % 32] >> i / 32 & 1;
  return (b.qs[i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3) + 4 * third - 4;
}
__device__ inline int code_of(const BlockQ4_K& b, uint32_t i) {
  return nibble(b.qs[i / 64 * 32 + i % 32], i % 64 >= 32);
}
__device__ inline int code_of(const BlockQ5_K& b, uint32_t i) {
  return nibble(b.qs[i / 64 * 32 + i % 32], i % 64 >= 32) | (b.qh[i % 32] >> i / 32 & 1) << 4;
}
__device__ inline int code_of(const BlockQ6_K& b, uint32_t i) {
  const uint32_t n = i / 128, j = i % 128 / 32, l = i % 32;
  return (nibble(b.ql[64 * n + 32 * (j % 2) + l], j >= 2) | (b.qh[32 * n + l] >> 2 * j & 3) << 4) - 32;
}
__device__ inline int code_of(const BlockIQ4_XS& b, uint32_t i) {
  return iq4_value(nibble(b.qs[i / 32 * 16 + i % 16], i % 32 >= 16));
}

// Scale and min of element i's 16 columns, for types whose tiles hold them as floats.
__device__ inline float2 scale_of(const BlockQ4_1& b, uint32_t) { return {half_value(b.d), -half_value(b.m)}; }
__device__ inline float2 scale_of(const BlockQ5_1& b, uint32_t) { return {half_value(b.d), -half_value(b.m)}; }
__device__ inline float2 scale_of(const BlockIQ4_NL& b, uint32_t) { return {half_value(b.d), 0.0f}; }
__device__ inline float2 scale_of(const BlockQ2_K& b, uint32_t i) {
  const int packed = b.scales[i / 16];
  return {half_value(b.d) * (packed & 15), half_value(b.dmin) * (packed >> 4)};
}
__device__ inline float2 scale_of(const BlockQ3_K& b, uint32_t i) {
  const uint32_t s = i / 16;
  const int upper = b.scales[8 + s % 4] >> 2 * (s / 4) & 3;
  return {half_value(b.d) * ((nibble(b.scales[s % 8], s >= 8) | upper << 4) - 32), 0.0f};
}
__device__ inline float2 scale_of(const BlockIQ4_XS& b, uint32_t i) {
  const uint32_t s = i / 32;
  const int low = b.scales_l[s / 2] >> 4 * (s % 2) & 15, upper = b.scales_h >> 2 * s & 3;
  return {half_value(b.d) * ((low | upper << 4) - 32), 0.0f};
}

}  // namespace perigee::cuda
