// Whether the NEON table gives the scalar table's bits: a program of its own, because it runs on an emulated CPU wherever
// the tests do. Prints one line per difference, then the count of comparisons.
#include <stdio.h>
#include <string.h>

#include <vector>

#include "../../engine/kernels/kernels.h"
#include "../../engine/quant/activation.h"

using namespace perigee;

namespace {

struct Type {
  const char* name;
  DType type;
  int halfs[2];  // byte offsets of the block's half fields, or -1
};
constexpr Type kTypes[] = {
    {"F32", DType::F32, {-1, -1}},   {"F16", DType::F16, {0, -1}},     {"BF16", DType::BF16, {-1, -1}},
    {"Q4_0", DType::Q4_0, {0, -1}},  {"Q4_1", DType::Q4_1, {0, 2}},    {"Q5_0", DType::Q5_0, {0, -1}},
    {"Q5_1", DType::Q5_1, {0, 2}},   {"Q8_0", DType::Q8_0, {0, -1}},   {"IQ4_NL", DType::IQ4_NL, {0, -1}},
    {"Q2_K", DType::Q2_K, {80, 82}}, {"Q3_K", DType::Q3_K, {108, -1}}, {"Q4_K", DType::Q4_K, {0, 2}},
    {"Q5_K", DType::Q5_K, {0, 2}},   {"Q6_K", DType::Q6_K, {208, -1}}, {"IQ4_XS", DType::IQ4_XS, {0, -1}},
};

uint32_t state = 1;
uint32_t next() {
  state = state * 1664525u + 1013904223u;
  const uint32_t mixed = (state ^ state >> 15) * 0x2c1b3c6du;
  return mixed ^ mixed >> 13;
}

std::vector<float> random_floats(size_t count, float size) {
  std::vector<float> x(count);
  for (float& v : x) v = size * (float(next()) / 2147483648.0f - 1.0f);
  return x;
}

// Arbitrary codes (or every byte `fill`), halfs of random sign between 2^-8 and 2^-6.
std::vector<uint8_t> random_weights(const Type& t, uint32_t rows, uint32_t cols, int fill) {
  std::vector<uint8_t> w(rows * row_bytes(t.type, cols));
  if (t.type == DType::F32) {
    const std::vector<float> x = random_floats(w.size() / 4, 1.0f);
    memcpy(w.data(), x.data(), w.size());
    return w;
  }
  for (uint8_t& byte : w) byte = uint8_t(fill < 0 ? next() >> 24 : uint32_t(fill));
  if (t.type == DType::BF16)
    for (size_t at = 1; at < w.size(); at += 2) w[at] = uint8_t((w[at] & 0x80) | 0x3c);
  for (size_t at = 0; at < w.size(); at += block_shape(t.type).bytes)
    for (int offset : t.halfs) {
      const uint32_t bits = next();
      const uint16_t half = uint16_t((bits & 0x83ff) | (7 + (bits >> 16) % 2) << 10);
      if (offset >= 0) memcpy(&w[at + uint32_t(offset)], &half, 2);
    }
  return w;
}

int compared = 0, different = 0;

void expect_equal(const char* what, const std::vector<float>& ours, const std::vector<float>& spec) {
  compared++;
  if (memcmp(ours.data(), spec.data(), ours.size() * sizeof(float)) == 0) return;
  different++;
  size_t at = 0;
  while (memcmp(&ours[at], &spec[at], sizeof(float)) == 0) at++;
  printf("%s: [%zu] is %a, scalar says %a\n", what, at, double(ours[at]), double(spec[at]));
}

void check_products(const Type& t, bool exact, uint32_t rows, uint32_t cols, uint32_t n, int fill) {
  const Activation kind = activation_for(t.type, exact);
  const size_t stride = activation_row_bytes(kind, cols);
  const std::vector<uint8_t> w = random_weights(t, rows, cols, fill);
  const std::vector<float> x = random_floats(size_t(n) * cols, 3.0f);
  std::vector<float> result[2];
  const Kernels* tables[2] = {&kNeonKernels, &kScalarKernels};
  for (int i = 0; i < 2; i++) {
    std::vector<uint8_t> activations(stride * n);
    for (uint32_t r = 0; r < n; r++) tables[i]->quantize(kind, &x[size_t(r) * cols], cols, &activations[r * stride]);
    result[i].resize(size_t(n) * rows);
    tables[i]->matmul[uint32_t(t.type)][exact](
        {w.data(), activations.data(), nullptr, result[i].data(), stride, rows, rows, cols, n});
  }
  char what[96];
  snprintf(what, sizeof(what), "%s exact %d rows %u cols %u n %u fill %d", t.name, exact, rows, cols, n, fill);
  expect_equal(what, result[0], result[1]);
}

void check_every_shape(const Type& t) {
  const uint32_t elements = block_shape(t.type).elements;
  const uint32_t blocks[] = {1, 2, 3, 4, 5, 9}, floats[] = {1, 15, 16, 40, 300, 531};
  for (int exact = 0; exact < 2; exact++)
    for (uint32_t i = 0; i < 6; i++)
      for (uint32_t n = 1; n <= 9; n++) {
        const uint32_t cols = elements == 1 ? floats[i] : blocks[i] * elements;
        check_products(t, exact != 0, 1 + (i * 9 + n * 5) % 17, cols, n, -1);
      }
  check_products(t, false, 5, elements == 1 ? 300 : 3 * elements, 67, -1);
  if (elements > 1)
    for (int fill : {0xff, 0x00, 0x80, 0x7f})
      for (uint32_t n : {1u, 6u}) check_products(t, false, 9, 4 * elements, n, fill);
}

void check_elementwise(uint32_t n) {
  const std::vector<float> x = random_floats(n, 8.0f), y = random_floats(n, 1.0f);
  std::vector<float> result[2];
  const Kernels* tables[2] = {&kNeonKernels, &kScalarKernels};
  for (int i = 0; i < 2; i++) {
    std::vector<float>& all = result[i];
    const auto run = [&](std::vector<float> values, auto kernel) {
      kernel(values.data());
      all.insert(all.end(), values.begin(), values.end());
    };
    run(y, [&](float* out) { tables[i]->rms_norm(x.data(), y.data(), 1e-6f, n, out); });
    run(x, [&](float* gate) { tables[i]->silu_mul(gate, y.data(), n); });
    run(x, [&](float* values) { tables[i]->sigmoid(values, n); });
    run(x, [&](float* values) { tables[i]->softmax(values, n); });
    run(x, [&](float* values) { tables[i]->twelve_bits(values, n); });
    run(y, [&](float* out) { tables[i]->axpy(1.7f, x.data(), n, out); });
  }
  expect_equal("elementwise", result[0], result[1]);
}

void check_attention(uint32_t key_dim, uint32_t value_dim, std::vector<int32_t> lengths, bool exact) {
  const uint32_t rows = uint32_t(lengths.size()), page_tokens = 16, page_count = 9;
  std::vector<float> q = random_floats(rows * key_dim, 1.0f);
  std::vector<float> keys = random_floats(page_count * page_tokens * key_dim, 1.0f);
  if (!exact) {
    kScalarKernels.twelve_bits(q.data(), uint32_t(q.size()));
    kScalarKernels.twelve_bits(keys.data(), uint32_t(keys.size()));
  }
  const float* pages[page_count];
  for (uint32_t p = 0; p < page_count; p++) pages[p] = &keys[p * page_tokens * key_dim];
  std::vector<float> out[2], scores(rows * page_count * page_tokens);
  const Kernels* tables[2] = {&kNeonKernels, &kScalarKernels};
  for (int i = 0; i < 2; i++) {
    out[i].resize(rows * value_dim);
    tables[i]->attention({q.data(), pages, lengths.data(), out[i].data(), scores.data(), page_count * page_tokens,
                          0.07f, rows, key_dim, value_dim, page_tokens, exact});
  }
  expect_equal("attention", out[0], out[1]);
}

}  // namespace

int main() {
  for (const Type& t : kTypes) check_every_shape(t);
  for (uint32_t n : {1u, 2u, 3u, 4u, 5u, 15u, 16u, 17u, 33u, 384u, 2051u}) check_elementwise(n);
  for (bool exact : {false, true}) {
    check_attention(576, 512, std::vector<int32_t>(16, 130), exact);
    check_attention(80, 64, {3, 130, 7, 1, 64, 129, 128}, exact);
    check_attention(42, 30, {5, 9, 33, 34, 70}, exact);
  }
  printf("neon %d comparisons, %d differ\n", compared, different);
  return different == 0 ? 0 : 1;
}
