// Products of weights with any number of rows: that both ways agree with doubles, and which is faster where.
#include <math.h>

#include "../../engine/quant/dequantize.h"
#include "../../native/cuda/products.h"
#include "blocks.h"
#include "harness.cuh"

using namespace perigee;
using namespace perigee::cuda;

namespace {

const check::Format& format_of(DType type) {
  for (const check::Format& format : check::kFormats)
    if (format.type == type) return format;
  abort();
}
constexpr DType kTypes[] = {DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::BF16};

struct Weights {
  std::vector<uint8_t> raw;
  Matrix matrix;
};

Weights random_weights(const check::Format& format, uint32_t rows, uint32_t cols) {
  Weights w;
  w.raw = check::random_blocks(format, rows, cols);
  const uint64_t stride = packed_bytes(format.type, rows, cols);
  w.matrix = {format.type, rows, cols, 1, stride, check::device<uint8_t>(stride)};
  uint8_t* raw = check::upload(w.raw);
  MUST(pack(0, w.matrix, 0, raw));
  MUST(cudaDeviceSynchronize());
  MUST(cudaFree(raw));
  return w;
}

// All forms of n random rows, quantized as Rows says.
Rows random_rows(uint32_t n, uint32_t cols, std::vector<float>* values) {
  std::mt19937 random(n);
  std::normal_distribution<float> normal;
  const uint32_t padded = padded_cols(cols);
  std::vector<float> x(uint64_t(n) * cols), scale(uint64_t(n) * padded / 32), sum(uint64_t(n) * padded / 16);
  std::vector<bf16> wide(x.size());
  std::vector<int8_t> q(uint64_t(n) * padded);
  for (size_t i = 0; i < x.size(); i++) wide[i] = __float2bfloat16(x[i] = normal(random));
  for (uint32_t r = 0; r < n; r++)
    for (uint32_t c = 0; c < cols; c += 32) {
      const float* from = &x[uint64_t(r) * cols + c];
      float largest = 0;
      for (uint32_t i = 0; i < 32; i++) largest = std::max(largest, fabsf(from[i]));
      const float d = largest / 127;
      scale[(uint64_t(r) * padded + c) / 32] = d;
      for (uint32_t i = 0; i < 32; i++) {
        const int code = d == 0 ? 0 : int(lrintf(from[i] / d));
        q[uint64_t(r) * padded + c + i] = int8_t(code);
        sum[(uint64_t(r) * padded + c + i) / 16] += d * float(code);
      }
    }
  *values = x;
  return {cols, check::upload(x), check::upload(wide), check::upload(q), check::upload(scale), check::upload(sum)};
}

void check_multiply(const check::Format& format, uint32_t n, bool add) {
  constexpr uint32_t kRows[2] = {160, 96}, kCols = 512, kStride = 300;
  std::vector<float> x;
  const Rows rows = random_rows(n, kCols, &x);
  const Weights w[2] = {random_weights(format, kRows[0], kCols), random_weights(format, kRows[1], kCols)};
  float* y = check::upload(std::vector<float>(uint64_t(n) * kStride, 2));
  const Output outputs[2] = {{&w[0].matrix, y, kStride, add}, {&w[1].matrix, y + kRows[0], kStride, false}};
  bf16* space = reinterpret_cast<bf16*>(check::device<uint8_t>(wide_bytes(w[0].matrix)));
  MUST(multiply(0, rows, n, outputs, 2, space));
  const std::vector<float> all = check::download(y, uint64_t(n) * kStride);
  std::vector<float> got, weights(kCols);
  std::vector<double> expected;
  bool untouched = true;
  for (uint32_t m = 0, column = 0; m < 2; column += kRows[m++])
    for (uint32_t r = 0; r < kRows[m]; r++) {
      dequantize_row(format.type, &w[m].raw[r * row_bytes(format.type, kCols)], kCols, weights.data());
      for (uint32_t t = 0; t < n; t++) {
        double value = m == 0 && add ? 2 : 0;
        for (uint32_t i = 0; i < kCols; i++) value += double(weights[i]) * x[uint64_t(t) * kCols + i];
        expected.push_back(value);
        got.push_back(all[uint64_t(t) * kStride + column + r]);
      }
    }
  for (uint32_t t = 0; t < n; t++)
    for (uint32_t i = kRows[0] + kRows[1]; i < kStride; i++) untouched &= all[uint64_t(t) * kStride + i] == 2;
  const double error = check::nmse(got, expected);
  char line[120];
  snprintf(line, sizeof line, "multiply %s, %u rows%s: nmse %.1e", format.name, n, add ? ", added" : "", error);
  check::expect(error < 1e-4 && untouched, line);
}

// Few-row products in slices beside unpacking and a matrix product, alternating over cold copies of the weights.
constexpr uint32_t kMostSliced = 128;
void time_multiply() {
  const uint32_t shapes[][2] = {{4096, 7168}, {7168, 8192}, {12288, 1536}};
  printf("\nus of one product: slices of %u rows | unpack + gemm\n%-6s %13s", kFewRows, "type", "rows x cols");
  const uint32_t counts[] = {17, 32, 48, 64, 96, 128, 512, 4096};
  for (const uint32_t n : counts) printf("  %15u", n);
  printf("\n");
  std::vector<float> x;
  for (const DType type : kTypes)
    for (const auto [rows, cols] : shapes) {
      const check::Format& format = format_of(type);
      constexpr uint32_t kCopies = 6;
      Rows activations = random_rows(kMostSliced, cols, &x);
      MUST(cudaFree(activations.wide));
      activations.wide = check::device<bf16>(uint64_t(4096) * cols);
      check::fill_normal(activations.wide, uint64_t(4096) * cols, 1, 9);
      Weights w = random_weights(format, rows, cols);
      uint8_t* copies = check::device<uint8_t>(w.matrix.stride * kCopies);
      for (uint32_t i = 0; i < kCopies; i++)
        MUST(cudaMemcpy(copies + i * w.matrix.stride, w.matrix.packed, w.matrix.stride, cudaMemcpyDeviceToDevice));
      float* y = check::device<float>(uint64_t(4096) * rows);
      bf16* space = check::device<bf16>(uint64_t(rows) * cols);
      printf("%-6s %5u x %5u", format.name, rows, cols);
      for (const uint32_t n : counts) {
        const auto at = [&](int i) {
          Matrix m = w.matrix;
          m.packed = copies + i % kCopies * m.stride;
          return m;
        };
        const double sliced = n > kMostSliced
                                  ? 0
                                  : check::microseconds(
                                        kCopies,
                                        [&](cudaStream_t stream, int i) {
                                          const Matrix m = at(i);
                                          for (uint32_t first = 0; first < n; first += kFewRows) {
                                            const Output output = {&m, y + uint64_t(first) * rows, rows, false};
                                            const uint32_t padded = padded_cols(cols);
                                            const Rows part = {cols,
                                                               activations.f32 + uint64_t(first) * cols,
                                                               activations.wide,
                                                               activations.q + uint64_t(first) * padded,
                                                               activations.scale + uint64_t(first) * padded / 32,
                                                               activations.sum + uint64_t(first) * padded / 16};
                                            MUST(multiply_few(stream, part, std::min(kFewRows, n - first), &output, 1));
                                          }
                                        },
                                        3);
        const double wide = check::microseconds(
            kCopies,
            [&](cudaStream_t stream, int i) {
              const Matrix m = at(i);
              if (m.type != DType::BF16) MUST(unpack(stream, m, 0, space));
              Gemm g = {};
              g.a = activations.wide, g.m = n, g.k = g.a_stride = g.b_stride = cols, g.n = rows, g.y = y,
              g.y_stride = rows;
              g.b = m.type == DType::BF16 ? reinterpret_cast<const bf16*>(m.packed) : space;
              MUST(gemm(stream, g));
            },
            3);
        printf("  %6.1f | %6.1f", sliced, wide);
        fflush(stdout);
      }
      printf("\n");
      for (const void* memory :
           {static_cast<const void*>(copies), static_cast<const void*>(y), static_cast<const void*>(space),
            static_cast<const void*>(w.matrix.packed), static_cast<const void*>(activations.f32)})
        MUST(cudaFree(const_cast<void*>(memory)));
    }
}

}  // namespace

// `small`: without times, for sanitizers.
int main(int argc, char** argv) {
  MUST(prepare_products(0));
  for (const DType type : kTypes)
    for (const uint32_t n : {1u, 16u, 17u, 40u, 48u, 49u, 130u, 300u}) check_multiply(format_of(type), n, n % 2 == 0);
  if (argc < 2 || strcmp(argv[1], "small") != 0) time_multiply();
  return check::done();
}
