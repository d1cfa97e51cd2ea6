// The kernels behind gemm and gemm_grouped, and what they are asked.
#pragma once
#include "products.h"

namespace perigee::cuda {

constexpr uint32_t kMostGroups = 512;

// y (+)= a . b^T for each group. Dense: `groups` products of m rows each, operands *_next apart. Grouped: rows
// begin[g] .. begin[g + 1] of y are group g's, row_of names the rows of `a` that they read.
struct Product {
  const bf16* a;
  const int32_t *row_of, *begin;  // null: dense
  const bf16* b;
  float* y;
  bf16* y_wide;
  uint64_t a_next, b_next, y_next;
  uint32_t groups, m, n, k, a_stride, b_stride, y_stride;
  bool add;
  bool aligned;  // rows of y, so that 16 bytes of neighbours may be stored at once
};

// mma.sync and cp.async, from sm_80 on. tile_rows: 16, 32, 64 or 128.
cudaError_t multiply_portable(cudaStream_t stream, const Product& p, uint32_t tile_rows, uint32_t processors);
cudaError_t prepare_portable();

// wgmma and tensor copies, Hopper only; dense products. tile_columns: 128, 192 or 256.
cudaError_t multiply_hopper(cudaStream_t stream, const Product& p, uint32_t tile_columns, uint32_t processors);
// The same with k cut into `parts`, at most 8 and no more than k / 64.
cudaError_t multiply_hopper_split(cudaStream_t stream, const Product& p, uint32_t parts);
cudaError_t prepare_hopper_split();
// Grouped products by tiles of 128 rows.
cudaError_t multiply_hopper_grouped(cudaStream_t stream, const Product& p, uint32_t processors);
cudaError_t prepare_hopper_grouped();
// Whether the current device and this build have it.
cudaError_t prepare_hopper(bool* usable);

Product product_of(const Gemm& args);
Product product_of(const GroupedGemm& args);

// Called once for each device before gemm and gemm_grouped.
cudaError_t prepare_gemm(int device);

}  // namespace perigee::cuda
