// Random floats, and rows in all their forms, for the checks of the small stages.
#pragma once
#include <string.h>

#include "../../engine/quant/half.h"
#include "../../native/cuda/rows.h"
#include "harness.cuh"

namespace check {

using perigee::bf16_to_float;
using perigee::cuda::bf16;
using perigee::cuda::padded_cols;
using perigee::cuda::Rows;

inline std::mt19937 random_bits(7);

inline std::vector<float> normal(size_t count, float sigma = 1) {
  std::normal_distribution<float> of(0, sigma);
  std::vector<float> v(count);
  for (float& x : v) x = of(random_bits);
  return v;
}

inline Rows make_rows(uint32_t n, uint32_t cols) {
  const uint32_t padded = padded_cols(cols);
  Rows r = {cols,
            device<float>(size_t(n) * cols),
            device<bf16>(size_t(n) * cols),
            device<int8_t>(size_t(n) * padded),
            device<float>(size_t(n) * padded / 32),
            device<float>(size_t(n) * padded / 16)};
  MUST(cudaMemset(r.q, 77, size_t(n) * padded));
  MUST(cudaMemset(r.scale, 77, size_t(n) * padded / 8));
  MUST(cudaMemset(r.sum, 77, size_t(n) * padded / 4));
  return r;
}

inline float wide_to_float(bf16 x) {
  uint16_t bits;
  memcpy(&bits, &x, 2);
  return bf16_to_float(bits);
}

// All forms of `rows` against `want` [n][cols].
inline bool forms_hold(const Rows& rows, uint32_t n, const std::vector<double>& want) {
  const uint32_t cols = rows.cols, padded = padded_cols(cols);
  const auto f = download(rows.f32, size_t(n) * cols);
  const auto w = download(rows.wide, size_t(n) * cols);
  const auto q = download(rows.q, size_t(n) * padded);
  const auto scale = download(rows.scale, size_t(n) * padded / 32);
  const auto sum = download(rows.sum, size_t(n) * padded / 16);
  bool good = check::nmse(f, want) < 1e-11;
  for (size_t t = 0; t < n; t++) {
    for (size_t g = 0; g < padded / 32; g++) {
      float peak = 0;
      for (size_t c = 32 * g; c < 32 * g + 32 && c < cols; c++) peak = std::max(peak, std::fabs(f[t * cols + c]));
      const float s = scale[t * padded / 32 + g];
      good &= s == peak / 127;
      for (size_t half = 0; half < 2; half++) {
        int total = 0;
        for (size_t c = 32 * g + 16 * half; c < 32 * g + 16 * half + 16; c++) {
          const int8_t code = q[t * padded + c];
          total += code;
          if (c >= cols) {
            good &= code == 0;
          } else {
            good &= std::fabs(code * s - f[t * cols + c]) <= 0.5001f * s && code >= -127;
            good &= std::fabs(wide_to_float(w[t * cols + c]) - f[t * cols + c]) <= std::fabs(f[t * cols + c]) / 256;
          }
        }
        good &= sum[t * padded / 16 + 2 * g + half] == s * total;
      }
    }
  }
  return good;
}

}  // namespace check
