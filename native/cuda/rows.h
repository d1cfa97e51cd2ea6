// Activations on the device, in the forms that products read. T rows of `cols` values; a null form is not kept.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

namespace perigee::cuda {

using bf16 = __nv_bfloat16;

// Most rows of a step that are multiplied by the kernels for few rows (few.cu); more take matrix products (gemm.cu).
constexpr uint32_t kFewRows = 16;

// Quantized rows are padded with zeros to whole groups of 256 columns, with zero scales and sums behind `cols`.
constexpr uint32_t padded_cols(uint32_t cols) { return (cols + 255) & ~255u; }

struct Rows {
  uint32_t cols;
  float* f32;    // [T][cols]
  bf16* wide;    // [T][cols], for matrix products of many rows
  int8_t* q;     // [T][padded_cols] round(x / scale), in -127..127, for few rows
  float* scale;  // [T][padded_cols / 32] largest magnitude of 32 values / 127; 0 for a group of zeros
  float* sum;    // [T][padded_cols / 16] scale * sum of q over 16 columns: what offsets and mins of weights need
};

// The rows from row `row` on.
inline Rows row_at(const Rows& rows, uint64_t row) {
  Rows at = rows;
  const uint64_t padded = row * padded_cols(rows.cols);
  if (at.f32) at.f32 += row * rows.cols;
  if (at.wide) at.wide += row * rows.cols;
  if (at.q) at.q += padded, at.scale += padded / 32, at.sum += padded / 16;
  return at;
}

}  // namespace perigee::cuda
