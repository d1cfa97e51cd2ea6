#include "activation.h"

#include "half.h"

namespace perigee {
namespace {

// Nearest integer within -127..127, ties to even: the addition rounds at the float's last place. NaN becomes -127 (an
// infinite activation, times an inverse scale of 0; the block's own scale is infinite then, and the result no number).
int32_t round_to_int(float v) {
  v = v > -127.0f ? v : -127.0f;
  v = v > 127.0f ? 127.0f : v;
  return int32_t(float_to_bits(v + 0x1.8p23f) - 0x4b400000);
}

struct Range {
  float low, high;
};

Range range_of(const float* x, uint32_t n) {
  Range range = {0.0f, 0.0f};
  for (uint32_t i = 0; i < n; i++) {
    range.low = x[i] < range.low ? x[i] : range.low;
    range.high = x[i] > range.high ? x[i] : range.high;
  }
  return range;
}

void quantize_q8_0(const float* x, uint32_t cols, uint8_t* out) {
  const uint32_t blocks = cols / 32;
  const Q8_0Row row = q8_0_row(out, cols);
  auto* q = const_cast<int8_t*>(row.q);
  auto* d = const_cast<float*>(row.d);
  auto* sum = const_cast<int32_t*>(row.sum);
  for (uint32_t b = 0; b < pad4(blocks); b++) {
    d[b] = 0.0f;
    sum[b] = 0;
    if (b >= blocks) continue;
    const Range range = range_of(x + 32 * b, 32);
    const float amax = range.high >= -range.low ? range.high : -range.low;
    const bool zero = amax < kSmallestMagnitude;
    const float scale = amax / 127.0f;
    const float inverse = zero ? 0.0f : 1.0f / scale;
    d[b] = half_to_float(float_to_half(scale));
    for (uint32_t i = 32 * b; i < 32 * b + 32; i++) {
      q[i] = int8_t(round_to_int(x[i] * inverse));
      sum[b] += q[i];
    }
  }
}

void quantize_q8_k(const float* x, uint32_t cols, uint8_t* out) {
  const uint32_t blocks = cols / 256;
  const Q8_KRow row = q8_k_row(out, cols);
  auto* q = const_cast<int8_t*>(row.q);
  auto* d = const_cast<float*>(row.d);
  auto* sum32 = const_cast<int16_t*>(row.sum32);
  auto* sum16 = const_cast<int16_t*>(row.sum16);
  for (uint32_t b = 0; b < pad4(blocks); b++) {
    d[b] = 0.0f;
    if (b >= blocks) continue;
    const Range range = range_of(x + 256 * b, 256);
    const float peak = range.high >= -range.low ? range.high : range.low;
    const bool zero = peak < kSmallestMagnitude && peak > -kSmallestMagnitude;
    const float inverse = zero ? 0.0f : -127.0f / peak;
    d[b] = zero ? 0.0f : 1.0f / inverse;
    for (uint32_t s = 16 * b; s < 16 * b + 16; s++) {
      int32_t sum = 0;
      for (uint32_t i = 16 * s; i < 16 * s + 16; i++) {
        q[i] = int8_t(round_to_int(x[i] * inverse));
        sum += q[i];
      }
      sum16[s] = int16_t(sum);
      if (s % 2 == 1) sum32[s / 2] = int16_t(sum16[s - 1] + sum);
    }
  }
}

}  // namespace

void quantize_row(Activation kind, const float* x, uint32_t cols, uint8_t* out) {
  switch (kind) {
    case Activation::F32: {
      auto* y = reinterpret_cast<float*>(out);
      for (uint32_t i = 0; i < pad4(cols); i++) y[i] = i < cols ? x[i] : 0.0f;
      return;
    }
    case Activation::Q8_0:
      return quantize_q8_0(x, cols, out);
    case Activation::Q8_K:
      return quantize_q8_k(x, cols, out);
  }
}

}  // namespace perigee
