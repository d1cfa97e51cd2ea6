// Weight matrices on the device: native blocks, re-ordered once at upload so that a warp reads whole lines. Values are
// those of the file, never quantized anew.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include "../../engine/tensor.h"
#include "rows.h"

namespace perigee::cuda {

// `count` equal matrices (experts or heads, else 1) of rows x cols. An empty one has packed == nullptr.
struct Matrix {
  DType type;
  uint32_t rows, cols, count;
  uint64_t stride;  // bytes from one packed matrix to the next
  uint8_t* packed;  // [count][stride], 256-byte aligned
};

// Bytes of one packed matrix, a multiple of 256. F32, F16 and BF16 stay as in the file.
uint64_t packed_bytes(DType type, uint32_t rows, uint32_t cols);

// Re-orders matrix `index` from `raw` on the device: the file's bytes, [rows][row_bytes(type, cols)], 16-byte aligned.
cudaError_t pack(cudaStream_t stream, const Matrix& to, uint32_t index, const uint8_t* raw);

// Packed matrix `index` as bf16, [rows][cols].
cudaError_t unpack(cudaStream_t stream, const Matrix& from, uint32_t index, bf16* to);

// `count` rows of the file's own bytes as bf16, [rows][cols]: for experts that only pass through. `raw` is 16-byte aligned.
cudaError_t widen(cudaStream_t stream, DType type, const uint8_t* raw, uint32_t rows, uint32_t cols, bf16* to);

// The table's rows of `tokens` [n], as in the file, to x [n][cols] float.
cudaError_t look_up(cudaStream_t stream, DType type, const uint8_t* raw_table, uint32_t cols, const int32_t* tokens,
                    uint32_t n, float* x);

}  // namespace perigee::cuda
