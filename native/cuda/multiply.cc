// Products of weights as they lie on the device with any number of rows.
#include "check.h"
#include "few.h"
#include "gemm_kernels.h"

namespace perigee::cuda {
namespace {

cudaError_t multiply_sliced(cudaStream_t stream, const Rows& x, uint32_t n, const Output* outputs, uint32_t count) {
  for (uint32_t first = 0; first < n; first += kFewRows) {
    Output slice[kMostOutputs];
    for (uint32_t i = 0; i < count; i++) {
      slice[i] = outputs[i];
      slice[i].y += uint64_t(first) * outputs[i].y_stride;
    }
    const uint32_t rows = n - first < kFewRows ? n - first : kFewRows;
    CUDA_TRY(multiply_few(stream, row_at(x, first), rows, slice, count));
  }
  return cudaSuccess;
}

cudaError_t multiply_wide(cudaStream_t stream, const Rows& x, uint32_t n, const Output& output, bf16* space) {
  const Matrix& w = *output.w;
  if (w.type != DType::BF16) CUDA_TRY(unpack(stream, w, 0, space));
  Gemm g = {};
  g.a = x.wide;
  g.m = n;
  g.k = g.a_stride = g.b_stride = w.cols;
  g.b = w.type == DType::BF16 ? reinterpret_cast<const bf16*>(w.packed) : space;
  g.n = w.rows;
  g.y = output.y;
  g.y_stride = output.y_stride;
  g.add = output.add;
  return gemm(stream, g);
}

// Up to so many rows meet weights of a type in the kernels for few rows, slice by slice.
uint32_t rows_of_few(DType type) {
  const bool floats = type == DType::F32 || type == DType::F16 || type == DType::BF16;
  return floats ? kFewRows : kQuantizedRows;
}

}  // namespace

uint64_t wide_bytes(const Matrix& w) { return w.type == DType::BF16 ? 0 : uint64_t(w.rows) * w.cols * sizeof(bf16); }

cudaError_t multiply(cudaStream_t stream, const Rows& x, uint32_t n, const Output* outputs, uint32_t count,
                     bf16* space) {
  if (count > kMostOutputs) CUDA_TRY(cudaErrorInvalidValue);
  Output sliced[kMostOutputs];
  uint32_t of_few = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (n <= rows_of_few(outputs[i].w->type)) sliced[of_few++] = outputs[i];
    else CUDA_TRY(multiply_wide(stream, x, n, outputs[i], space));
  }
  return of_few > 0 ? multiply_sliced(stream, x, n, sliced, of_few) : cudaSuccess;
}

cudaError_t prepare_products(int device) {
  CUDA_TRY(prepare_gemm(device));
  CUDA_TRY(prepare_few());
  return cudaSuccess;
}

}  // namespace perigee::cuda
