// Descriptions of matrices for Hopper's tensor copies, made on the host for each launch.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include "rows.h"

namespace perigee::cuda {

// `count` matrices of `rows` x `cols`, `stride` elements from row to row and `next` from matrix to matrix, read in boxes of
// box_rows x box_cols in the 128-byte swizzle; what lies outside is read as zero. box_cols is 64.
cudaError_t map_rows(CUtensorMap* map, const bf16* at, uint32_t cols, uint32_t rows, uint64_t stride, uint32_t count,
                     uint64_t next, uint32_t box_cols, uint32_t box_rows);

}  // namespace perigee::cuda
