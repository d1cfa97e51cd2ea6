#include "copies.h"

#include "launch.cuh"

namespace perigee::cuda {
namespace {

constexpr uint32_t kThreads = 256, kSide = 32;

__device__ uint64_t own_index() { return blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; }

__global__ void add_to_kernel(const float* from, uint64_t count, float* to) {
  wait_for_previous();
  let_next_start();
  const uint64_t i = own_index();
  // Never from a cache: the CPU may have written it since an earlier step read the same address.
  if (i < count) to[i] += __ldcv(from + i);
}

__global__ void transpose_kernel(const bf16* from, uint32_t rows, uint32_t cols, bf16* to) {
  __shared__ bf16 tile[kSide][kSide + 2];
  wait_for_previous();
  let_next_start();
  const uint32_t row = blockIdx.y * kSide, col = blockIdx.x * kSide;
  for (uint32_t i = threadIdx.y; i < kSide; i += blockDim.y)
    if (row + i < rows && col + threadIdx.x < cols)
      tile[i][threadIdx.x] = from[uint64_t{row + i} * cols + col + threadIdx.x];
  __syncthreads();
  for (uint32_t i = threadIdx.y; i < kSide; i += blockDim.y)
    if (col + i < cols && row + threadIdx.x < rows)
      to[uint64_t{col + i} * rows + row + threadIdx.x] = tile[threadIdx.x][i];
}

__global__ void to_float_kernel(const bf16* from, uint64_t count, float* to) {
  wait_for_previous();
  let_next_start();
  const uint64_t i = own_index();
  if (i < count) to[i] = __bfloat162float(from[i]);
}

Launch one_each(uint64_t count, cudaStream_t stream) {
  return {static_cast<uint32_t>((count + kThreads - 1) / kThreads), kThreads, 0, stream};
}

}  // namespace

cudaError_t add_to(cudaStream_t stream, const float* from, uint64_t count, float* to) {
  CUDA_TRY(launch(one_each(count, stream), add_to_kernel, from, count, to));
  return cudaSuccess;
}

cudaError_t transpose(cudaStream_t stream, const bf16* from, uint32_t rows, uint32_t cols, bf16* to) {
  const dim3 grid((cols + kSide - 1) / kSide, (rows + kSide - 1) / kSide);
  CUDA_TRY(launch({grid, dim3(kSide, 8), 0, stream}, transpose_kernel, from, rows, cols, to));
  return cudaSuccess;
}

cudaError_t to_float(cudaStream_t stream, const bf16* from, uint64_t count, float* to) {
  CUDA_TRY(launch(one_each(count, stream), to_float_kernel, from, count, to));
  return cudaSuccess;
}

}  // namespace perigee::cuda
