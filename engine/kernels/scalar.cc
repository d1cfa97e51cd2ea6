// The specification: every kernel in plain C++, written for reading (order rules: kernels.h).
#include "../math.h"
#include "../quant/activation.h"
#include "../quant/dequantize.h"
#include "kernels.h"

namespace perigee {
namespace {

// Rule 3: element i to lane i mod 16, then fold by 8, 4, 2, 1.
struct Lanes16 {
  float lane[16] = {};

  void add(uint32_t i, float value) { lane[i % 16] += value; }

  float sum() const {
    float l[16];
    for (int i = 0; i < 16; i++) l[i] = lane[i];
    for (int step = 8; step >= 1; step /= 2)
      for (int i = 0; i < step; i++) l[i] += l[i + step];
    return l[0];
  }
};

// Rule 2: block b to lane b mod 4.
struct Lanes4 {
  float lane[4] = {};

  void add(uint32_t b, float term) { lane[b % 4] += term; }

  float sum() const { return (lane[0] + lane[2]) + (lane[1] + lane[3]); }
};

float dot(const float* a, const float* b, uint32_t n) {
  Lanes16 lanes;
  for (uint32_t i = 0; i < n; i++) lanes.add(i, a[i] * b[i]);
  return lanes.sum();
}

int32_t dot_int(const int8_t* a, const int8_t* b, int n) {
  int32_t sum = 0;
  for (int i = 0; i < n; i++) sum += int32_t(a[i]) * b[i];
  return sum;
}

template <typename Block, bool kHasMin>
float dot32(const uint8_t* w, const uint8_t* x, uint32_t cols) {
  const auto* blocks = reinterpret_cast<const Block*>(w);
  const Q8_0Row row = q8_0_row(x, cols);
  Lanes4 lanes;
  for (uint32_t b = 0; b < cols / 32; b++) {
    Codes32 codes;
    unpack(blocks[b], codes);
    const float isum = float(dot_int(codes.q, row.q + 32 * b, 32));
    lanes.add(b, kHasMin ? row.d[b] * (codes.d * isum + codes.m * float(row.sum[b])) : (codes.d * row.d[b]) * isum);
  }
  return lanes.sum();
}

template <typename Block, bool kHasMin>
float dot256(const uint8_t* w, const uint8_t* x, uint32_t cols) {
  const auto* blocks = reinterpret_cast<const Block*>(w);
  const Q8_KRow row = q8_k_row(x, cols);
  Lanes4 lanes;
  for (uint32_t b = 0; b < cols / 256; b++) {
    Codes256 codes;
    unpack(blocks[b], codes);
    int32_t isum = 0, msum = 0;
    for (int s = 0; s < 16; s++) {
      isum += codes.scale[s] * dot_int(codes.q + 16 * s, row.q + 256 * b + 16 * s, 16);
      msum += codes.min[s] * row.sum16[16 * b + s];
    }
    const float value = codes.d * float(isum);
    lanes.add(b, row.d[b] * (kHasMin ? value - codes.dmin * float(msum) : value));
  }
  return lanes.sum();
}

using RowDot = float (*)(const uint8_t* w, const uint8_t* x, uint32_t cols);

template <DType kType, RowDot kDot>
void matmul_quantized(const MatmulArgs& a) {
  const size_t stride = row_bytes(kType, a.cols);
  for (uint32_t r = 0; r < a.rows; r++)
    for (uint32_t i = 0; i < a.n; i++) {
      const uint8_t* x = a.x + a.x_stride * (a.x_rows ? uint32_t(a.x_rows[i]) : i);
      a.y[i * a.y_stride + r] = kDot(a.w + r * stride, x, a.cols);
    }
}

// Float activations: the weight row as floats, up to 256 at a time, in a 16-lane dot.
template <DType kType>
void matmul_float(const MatmulArgs& a) {
  const size_t stride = row_bytes(kType, a.cols);
  for (uint32_t r = 0; r < a.rows; r++)
    for (uint32_t i = 0; i < a.n; i++) {
      const auto* x = reinterpret_cast<const float*>(a.x + a.x_stride * (a.x_rows ? uint32_t(a.x_rows[i]) : i));
      Lanes16 lanes;
      for (uint32_t c = 0; c < a.cols; c += 256) {
        const uint32_t count = a.cols - c < 256 ? a.cols - c : 256;
        float w[256];
        dequantize_row(kType, a.w + r * stride + row_bytes(kType, c), count, w);
        for (uint32_t j = 0; j < count; j++) lanes.add(j, w[j] * x[c + j]);
      }
      a.y[i * a.y_stride + r] = lanes.sum();
    }
}

void rms_norm(const float* x, const float* weight, float eps, uint32_t n, float* y) {
  const float scale = 1.0f / sqrt_float(dot(x, x, n) / float(n) + eps);
  for (uint32_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

void silu_mul(float* gate, const float* up, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + exp_float(-gate[i])) * up[i];
}

void sigmoid(float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) x[i] = 1.0f / (1.0f + exp_float(-x[i]));
}

void softmax(float* x, uint32_t n) {
  float max = x[0];
  for (uint32_t i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
  Lanes16 lanes;
  for (uint32_t i = 0; i < n; i++) {
    x[i] = exp_float(x[i] - max);
    lanes.add(i, x[i]);
  }
  const float sum = lanes.sum();
  for (uint32_t i = 0; i < n; i++) x[i] = x[i] / sum;
}

void axpy(float a, const float* x, uint32_t n, float* y) {
  for (uint32_t i = 0; i < n; i++) y[i] += a * x[i];
}

void to_twelve_bits(float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) x[i] = twelve_bits(x[i]);
}

void attention(const AttentionArgs& a) {
  for (uint32_t r = 0; r < a.rows; r++) {
    const uint32_t length = uint32_t(a.lengths[r]);
    const float* q = a.q + size_t(r) * a.key_dim;
    float* scores = a.scores + r * a.score_stride;
    float* out = a.out + size_t(r) * a.value_dim;
    const auto key = [&](uint32_t j) { return a.pages[j / a.page_tokens] + size_t(j % a.page_tokens) * a.key_dim; };
    for (uint32_t j = 0; j < length; j++) scores[j] = dot(q, key(j), a.key_dim) * a.scale;
    softmax(scores, length);
    if (!a.exact) to_twelve_bits(scores, length);
    for (uint32_t c = 0; c < a.value_dim; c++) out[c] = 0.0f;
    for (uint32_t j = 0; j < length; j++) axpy(scores[j], key(j), a.value_dim, out);
  }
}

constexpr Kernels make_table() {
  Kernels k = {};
  k.name = "scalar";
  const auto set = [&k](DType type, MatmulFn quantized, MatmulFn exact) {
    k.matmul[uint32_t(type)][0] = quantized;
    k.matmul[uint32_t(type)][1] = exact;
  };
  using enum DType;
  set(F32, matmul_float<F32>, matmul_float<F32>);
  set(F16, matmul_float<F16>, matmul_float<F16>);
  set(BF16, matmul_float<BF16>, matmul_float<BF16>);
  set(Q4_0, matmul_quantized<Q4_0, dot32<BlockQ4_0, false>>, matmul_float<Q4_0>);
  set(Q4_1, matmul_quantized<Q4_1, dot32<BlockQ4_1, true>>, matmul_float<Q4_1>);
  set(Q5_0, matmul_quantized<Q5_0, dot32<BlockQ5_0, false>>, matmul_float<Q5_0>);
  set(Q5_1, matmul_quantized<Q5_1, dot32<BlockQ5_1, true>>, matmul_float<Q5_1>);
  set(Q8_0, matmul_quantized<Q8_0, dot32<BlockQ8_0, false>>, matmul_float<Q8_0>);
  set(IQ4_NL, matmul_quantized<IQ4_NL, dot32<BlockIQ4_NL, false>>, matmul_float<IQ4_NL>);
  set(Q2_K, matmul_quantized<Q2_K, dot256<BlockQ2_K, true>>, matmul_float<Q2_K>);
  set(Q3_K, matmul_quantized<Q3_K, dot256<BlockQ3_K, false>>, matmul_float<Q3_K>);
  set(Q4_K, matmul_quantized<Q4_K, dot256<BlockQ4_K, true>>, matmul_float<Q4_K>);
  set(Q5_K, matmul_quantized<Q5_K, dot256<BlockQ5_K, true>>, matmul_float<Q5_K>);
  set(Q6_K, matmul_quantized<Q6_K, dot256<BlockQ6_K, false>>, matmul_float<Q6_K>);
  set(IQ4_XS, matmul_quantized<IQ4_XS, dot256<BlockIQ4_XS, false>>, matmul_float<IQ4_XS>);
  k.dequantize = dequantize_row;
  k.quantize = quantize_row;
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

constexpr Kernels kScalarKernels = make_table();

}  // namespace perigee
