// Random weights in every format and activations for them, on the host in doubles and on the device.
#pragma once
#include <string.h>

#include "../../engine/quant/blocks.h"
#include "../../engine/quant/dequantize.h"
#include "../../native/cuda/products.h"
#include "harness.cuh"

namespace check {

using namespace perigee;
using namespace perigee::cuda;

struct Named {
  DType type;
  const char* name;
};
constexpr Named kTypes[] = {{DType::Q4_K, "Q4_K"}, {DType::Q5_K, "Q5_K"},     {DType::Q6_K, "Q6_K"},
                            {DType::Q8_0, "Q8_0"}, {DType::Q4_0, "Q4_0"},     {DType::Q5_0, "Q5_0"},
                            {DType::Q4_1, "Q4_1"}, {DType::Q5_1, "Q5_1"},     {DType::Q2_K, "Q2_K"},
                            {DType::Q3_K, "Q3_K"}, {DType::IQ4_NL, "IQ4_NL"}, {DType::IQ4_XS, "IQ4_XS"},
                            {DType::F32, "F32"},   {DType::F16, "F16"},       {DType::BF16, "BF16"}};

inline std::mt19937 generator(7);
inline float normal() { return std::normal_distribution<float>()(generator); }
inline uint16_t half_bits(float x) { return __half_as_ushort(__float2half(x)); }

// Where the scales of a block lie, as halfs; the rest of a block may be any bits.
inline std::vector<size_t> scale_offsets(DType type) {
  switch (type) {
    case DType::Q4_1:
    case DType::Q5_1:
    case DType::Q4_K:
    case DType::Q5_K:
      return {0, 2};
    case DType::Q2_K:
      return {80, 82};
    case DType::Q3_K:
      return {108};
    case DType::Q6_K:
      return {208};
    default:
      return {0};
  }
}

// Raw blocks of rows x cols, and their values.
struct Weights {
  std::vector<uint8_t> raw;
  std::vector<float> value;
};
inline Weights random_weights(DType type, uint32_t rows, uint32_t cols) {
  const size_t bytes = row_bytes(type, cols);
  const BlockShape shape = block_shape(type);
  Weights w;
  w.raw.resize(rows * bytes);
  w.value.resize(size_t(rows) * cols);
  if (shape.elements == 1) {
    for (size_t i = 0; i < w.value.size(); i++) {
      const float x = normal();
      if (type == DType::F32) memcpy(&w.raw[4 * i], &x, 4);
      const uint16_t bits = type == DType::F16 ? half_bits(x) : __bfloat16_as_ushort(__float2bfloat16(x));
      if (type != DType::F32) memcpy(&w.raw[2 * i], &bits, 2);
    }
  } else {
    for (auto& byte : w.raw) byte = generator();
    for (size_t at = 0; at < w.raw.size(); at += shape.bytes) {
      for (const size_t offset : scale_offsets(type)) {
        const uint16_t bits = half_bits(normal() * 0.01f);
        memcpy(&w.raw[at + offset], &bits, 2);
      }
    }
  }
  for (uint32_t r = 0; r < rows; r++) dequantize_row(type, &w.raw[r * bytes], cols, &w.value[size_t(r) * cols]);
  return w;
}

// `count` matrices packed one after the other.
inline Matrix packed(DType type, uint32_t rows, uint32_t cols, const std::vector<Weights>& all) {
  const uint64_t stride = packed_bytes(type, rows, cols);
  const Matrix m = {type, rows, cols, uint32_t(all.size()), stride, device<uint8_t>(stride * all.size())};
  for (uint32_t i = 0; i < all.size(); i++) {
    uint8_t* raw = upload(all[i].raw);
    MUST(pack(nullptr, m, i, raw));
    MUST(cudaDeviceSynchronize());
    MUST(cudaFree(raw));
  }
  return m;
}

// Rows of activations with what their quantized form stands for.
struct HostRows {
  Rows rows;
  std::vector<float> f32;
  std::vector<double> quantized;
};
inline HostRows random_rows(uint32_t n, uint32_t cols) {
  const uint32_t padded = padded_cols(cols);
  HostRows h;
  h.f32.resize(size_t(n) * cols);
  h.quantized.resize(size_t(n) * cols);
  std::vector<int8_t> q(size_t(n) * padded);
  std::vector<float> scale(size_t(n) * padded / 32), sum(size_t(n) * padded / 16);
  for (auto& x : h.f32) x = normal();
  for (uint32_t t = 0; t < n; t++) {
    for (uint32_t c = 0; c < cols; c += 32) {
      const float* x = &h.f32[size_t(t) * cols + c];
      float peak = 0;
      for (int i = 0; i < 32; i++) peak = std::max(peak, fabsf(x[i]));
      const float s = peak / 127;
      const size_t at = size_t(t) * padded + c;
      scale[at / 32] = s;
      int sums[2] = {};
      for (int i = 0; i < 32; i++) {
        q[at + i] = int8_t(lrintf(x[i] / s));
        sums[i / 16] += q[at + i];
        h.quantized[size_t(t) * cols + c + i] = double(q[at + i]) * s;
      }
      for (int i = 0; i < 2; i++) sum[at / 16 + i] = s * sums[i];
    }
  }
  h.rows = {cols, upload(h.f32), nullptr, upload(q), upload(scale), upload(sum)};
  return h;
}

// w [rows][cols] . x [cols] in doubles.
template <typename X>
double dot(const float* w, const X* x, uint32_t cols) {
  double sum = 0;
  for (uint32_t i = 0; i < cols; i++) sum += double(w[i]) * double(x[i]);
  return sum;
}
inline bool is_quantized(DType type) { return type != DType::F32 && type != DType::F16 && type != DType::BF16; }

// What products of weights of `type` see of rows on the device.
inline std::vector<double> seen(const Rows& rows, uint32_t n, bool quantized) {
  const size_t padded = padded_cols(rows.cols);
  if (!quantized) {
    const std::vector<float> f32 = download(rows.f32, size_t(n) * rows.cols);
    return {f32.begin(), f32.end()};
  }
  const std::vector<int8_t> q = download(rows.q, n * padded);
  const std::vector<float> scale = download(rows.scale, n * padded / 32);
  std::vector<double> values;
  for (size_t t = 0; t < n; t++)
    for (size_t c = 0; c < rows.cols; c++) values.push_back(double(q[t * padded + c]) * scale[(t * padded + c) / 32]);
  return values;
}

// Whether the quantized form is what rows.h says of the float form, padding included.
inline bool well_quantized(const Rows& rows, uint32_t n) {
  const size_t padded = padded_cols(rows.cols);
  const std::vector<float> f32 = download(rows.f32, n * size_t(rows.cols));
  const std::vector<int8_t> q = download(rows.q, n * padded);
  const std::vector<float> scale = download(rows.scale, n * padded / 32), sum = download(rows.sum, n * padded / 16);
  bool good = true;
  for (size_t at = 0; at < n * padded; at += 16) {
    float peak = 0;
    int total = 0;
    for (size_t i = at / 32 * 32; i < at / 32 * 32 + 32; i++)
      if (i % padded < rows.cols) peak = std::max(peak, fabsf(f32[i / padded * rows.cols + i % padded]));
    for (size_t i = at; i < at + 16; i++) {
      const float x = i % padded < rows.cols ? f32[i / padded * rows.cols + i % padded] : 0.0f;
      good &= fabsf(x - q[i] * scale[i / 32]) <= 0.501f * scale[i / 32];
      total += q[i];
    }
    good &= fabsf(scale[at / 32] - peak / 127) <= 1e-6f * peak &&
            fabsf(sum[at / 16] - total * scale[at / 32]) <= 1e-6f * peak * 127;
  }
  return good;
}

// Empty rows of every form.
inline Rows empty_rows(uint32_t n, uint32_t cols) {
  const size_t padded = size_t(n) * padded_cols(cols);
  return {cols,
          device<float>(size_t(n) * cols),
          device<bf16>(size_t(n) * cols),
          device<int8_t>(padded),
          device<float>(padded / 32),
          device<float>(padded / 16)};
}

}  // namespace check
