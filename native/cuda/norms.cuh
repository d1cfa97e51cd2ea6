// RMSNorm of a row that a block holds in registers: thread i has the vectors of four columns i, i + threads, ...
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

namespace perigee::cuda {

// How a row of `vectors` vectors, a multiple of 64, is dealt to a block: `per` (1, 2, 4, ...) to each of `threads` threads.
struct RowShape {
  uint32_t per, threads;
};
inline RowShape row_shape(uint32_t vectors) {
  uint32_t per = 1;
  while (vectors > 1024 * per) per *= 2;
  return {per, (vectors / per + 31) / 32 * 32};
}

__device__ inline uint32_t column_of(int p) { return 4 * (threadIdx.x + p * blockDim.x); }

__device__ inline float4 load_or_zero(const float* row, uint32_t column, uint32_t cols) {
  return column < cols ? *reinterpret_cast<const float4*>(row + column) : float4{0, 0, 0, 0};
}

// 1 / sqrt(mean of squares + eps), in every thread of the block.
template <int kPer>
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
  return 1.0f / sqrtf(sum / static_cast<float>(cols) + eps);
}

__device__ inline float4 normed(float4 x, float scale, float4 weight) {
  return {x.x * scale * weight.x, x.y * scale * weight.y, x.z * scale * weight.z, x.w * scale * weight.w};
}

}  // namespace perigee::cuda
