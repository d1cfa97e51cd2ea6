#include "self_check.h"

#include <string.h>
#include <vector>

#include "../engine/quant/encode.h"
#include "cpu.h"

namespace perigee {

namespace {

constexpr uint32_t kRows = 5, kCols = 512, kTokens = 9;  // odd ones for the tails; two superblocks; decode and panels

struct Type {
  DType type;
  const char* refusal;
};
// What Kimi K2's files hold, and what `convert` writes.
constexpr Type kTypes[] = {
    {DType::F32, "its F32 products differ from the scalar table's"},
    {DType::F16, "its F16 products differ from the scalar table's"},
    {DType::BF16, "its BF16 products differ from the scalar table's"},
    {DType::Q8_0, "its Q8_0 products differ from the scalar table's"},
    {DType::Q4_0, "its Q4_0 products differ from the scalar table's"},
    {DType::Q5_0, "its Q5_0 products differ from the scalar table's"},
    {DType::Q4_K, "its Q4_K products differ from the scalar table's"},
    {DType::Q5_K, "its Q5_K products differ from the scalar table's"},
    {DType::Q6_K, "its Q6_K products differ from the scalar table's"},
};

// In [-1, 1), the same everywhere.
void fill(std::vector<float>& values, uint32_t seed) {
  uint32_t state = seed;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int32_t>(state) >> 8) * 0x1p-23f;
  }
}

std::vector<uint8_t> encoded(DType type) {
  std::vector<float> values(kRows * kCols);
  fill(values, 1);
  const size_t bytes = row_bytes(type, kCols);
  std::vector<uint8_t> rows(kRows * bytes);
  for (uint32_t r = 0; r < kRows; r++) encode_row(type, values.data() + size_t{r} * kCols, kCols, &rows[r * bytes]);
  return rows;
}

// The product as `table` computes it, quantizing its own activations.
std::vector<float> product(const Kernels& table, DType type, const std::vector<uint8_t>& weights, uint32_t tokens) {
  const Activation kind = activation_for(type, false);
  const size_t stride = activation_row_bytes(kind, kCols);
  std::vector<float> x(tokens * kCols), y(tokens * kRows);
  fill(x, 2);
  std::vector<uint8_t> rows(tokens * stride + 64);
  uint8_t* aligned = rows.data() + (64 - reinterpret_cast<uintptr_t>(rows.data()) % 64) % 64;
  for (uint32_t t = 0; t < tokens; t++) table.quantize(kind, &x[size_t{t} * kCols], kCols, aligned + t * stride);
  MatmulArgs args = {};
  args.w = weights.data();
  args.x = aligned;
  args.y = y.data();
  args.x_stride = stride;
  args.y_stride = args.rows = kRows;
  args.cols = kCols;
  args.n = tokens;
  table.matmul[static_cast<uint32_t>(type)][0](args);
  return y;
}

}  // namespace

const char* table_refusal(const Kernels& table) {
  if (!cpu_runs(table)) return "this CPU lacks its instructions";
  for (const Type& each : kTypes) {
    const std::vector<uint8_t> weights = encoded(each.type);
    for (const uint32_t tokens : {1u, kTokens}) {
      const std::vector<float> got = product(table, each.type, weights, tokens);
      const std::vector<float> want = product(kScalarKernels, each.type, weights, tokens);
      if (memcmp(got.data(), want.data(), got.size() * sizeof(float)) != 0) return each.refusal;
    }
  }
  return nullptr;
}

}  // namespace perigee
