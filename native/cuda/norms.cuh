// RMSNorm of a row that blocks hold in registers, four neighbouring columns to a vector.
#pragma once
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace perigee::cuda {

// How a row of `vectors` vectors, a multiple of 64, is dealt to `parts` blocks: `per` (1, 2, 4, ...) to each of `threads`
// threads.
struct RowShape {
  uint32_t per, threads;
};
inline RowShape row_shape(uint32_t vectors, uint32_t parts = 1) {
  uint32_t per = 1;
  while (vectors > 1024 * per * parts) per *= 2;
  return {per, (vectors / (per * parts) + 31) / 32 * 32};
}

// First column of this thread's vector p. Neighbouring threads have neighbouring vectors.
__device__ inline uint32_t column_of(int p, uint32_t part = 0, uint32_t parts = 1) {
  return 4 * ((p * parts + part) * blockDim.x + threadIdx.x);
}

__device__ inline float4 load_or_zero(const float* row, uint32_t column, uint32_t cols) {
  return column < cols ? *reinterpret_cast<const float4*>(row + column) : float4{0, 0, 0, 0};
}

// Meets all threads of the blocks of a cluster.
template <uint32_t kParts>
__device__ inline void meet_parts() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (kParts > 1) return cooperative_groups::this_cluster().sync();
#endif
  __syncthreads();
}

// The sum over the blocks of a cluster, one a part of the row, in their order; `own` is the same in all threads of a block.
template <uint32_t kParts>
__device__ inline float sum_of_parts(float own) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (kParts > 1) {
    __shared__ float of_parts[kParts];
    auto cluster = cooperative_groups::this_cluster();
    // Neighbours must run before their memory is written.
    cluster.barrier_wait(cluster.barrier_arrive());
    if (threadIdx.x < kParts) *cluster.map_shared_rank(&of_parts[cluster.block_rank()], threadIdx.x) = own;
    cluster.sync();
    float sum = 0;
    for (uint32_t part = 0; part < kParts; part++) sum += of_parts[part];
    return sum;
  }
#endif
  return own;
}

// 1 / sqrt(mean of squares + eps), in every thread.
template <int kPer, uint32_t kParts = 1>
__device__ inline float norm_scale(const float4 (&x)[kPer], uint32_t cols, float eps) {
  __shared__ float of_warps[32];
  float sum = 0;
#pragma unroll
  for (int p = 0; p < kPer; p++) sum += (x[p].x * x[p].x + x[p].y * x[p].y) + (x[p].z * x[p].z + x[p].w * x[p].w);
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  const uint32_t lane = threadIdx.x % 32;
  if (lane == 0) of_warps[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = lane < blockDim.x / 32 ? of_warps[lane] : 0.0f;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  return 1.0f / sqrtf(sum_of_parts<kParts>(sum) / static_cast<float>(cols) + eps);
}

__device__ inline float4 normed(float4 x, float scale, float4 weight) {
  return {x.x * scale * weight.x, x.y * scale * weight.y, x.z * scale * weight.z, x.w * scale * weight.w};
}

}  // namespace perigee::cuda
