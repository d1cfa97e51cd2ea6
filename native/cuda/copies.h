// Copies and sums that no other stage does by the way.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include "rows.h"

namespace perigee::cuda {

// to[i] += from[i]; `from` may lie in mapped host memory.
cudaError_t add_to(cudaStream_t stream, const float* from, uint64_t count, float* to);

// to [cols][rows] = the transposed `from` [rows][cols].
cudaError_t transpose(cudaStream_t stream, const bf16* from, uint32_t rows, uint32_t cols, bf16* to);

cudaError_t to_float(cudaStream_t stream, const bf16* from, uint64_t count, float* to);

}  // namespace perigee::cuda
