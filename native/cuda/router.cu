// The router: scores in float, whatever the weights' type, and the choice of experts from them. Two forms of the scores:
// for few tokens every warp holds its share of the weights in registers before the tokens are there; for many, tiles.
#include <cuda_fp16.h>

#include "choose.cuh"
#include "launch.cuh"
#include "stages.h"

namespace perigee::cuda {
namespace {

constexpr uint32_t kFewTokens = 64;   // above it the tiles are faster: the few read h once per expert
constexpr uint32_t kFusedTokens = 4;  // up to here the last block chooses, one warp a token
constexpr int kFewThreads = 128;

// Four weights from column 4 * vector on.
__device__ float4 load_weights(const float* w, size_t vector) { return reinterpret_cast<const float4*>(w)[vector]; }
__device__ float4 load_weights(const __half* w, size_t vector) {
  const uint2 bits = reinterpret_cast<const uint2*>(w)[vector];
  const float2 a = __half22float2(reinterpret_cast<const __half2&>(bits.x)),
               b = __half22float2(reinterpret_cast<const __half2&>(bits.y));
  return {a.x, a.y, b.x, b.y};
}
__device__ float4 load_weights(const bf16* w, size_t vector) {
  const uint2 bits = reinterpret_cast<const uint2*>(w)[vector];
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
          __uint_as_float(bits.y & 0xffff0000u)};
}

__device__ float dot(float4 a, float4 b, float sum) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

__device__ float score_of(float logit, bool sigmoid) { return sigmoid ? 1.0f / (1.0f + expf(-logit)) : logit; }

// A block an expert. kHeld vectors a thread are held in registers: 7168 columns need no others.
template <typename W>
__global__ void __launch_bounds__(kFewThreads, 3) score_few_kernel(const Router args) {
  constexpr int kHeld = 14;
  __shared__ float parts[kFewTokens][kFewThreads / 32];
  __shared__ bool last;
  const uint32_t vectors = args.hidden / 4;
  const W* w = static_cast<const W*>(args.w) + size_t(blockIdx.x) * args.hidden;
  float4 held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; i++) {
    const uint32_t v = threadIdx.x + i * kFewThreads;
    held[i] = v < vectors ? load_weights(w, v) : float4{0, 0, 0, 0};
  }
  wait_for_previous();
  let_next_start();
  for (uint32_t t = 0; t < args.n; t++) {
    const float4* h = reinterpret_cast<const float4*>(args.h) + size_t(t) * vectors;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      const uint32_t v = threadIdx.x + i * kFewThreads;
      if (v < vectors) sum = dot(h[v], held[i], sum);
    }
    for (uint32_t v = threadIdx.x + kHeld * kFewThreads; v < vectors; v += kFewThreads)
      sum = dot(h[v], load_weights(w, v), sum);
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (threadIdx.x % 32 == 0) parts[t][threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x < args.n) {
    const float* p = parts[threadIdx.x];
    args.scores[size_t(threadIdx.x) * args.experts + blockIdx.x] =
        score_of((p[0] + p[1]) + (p[2] + p[3]), args.sigmoid);
  }
  if (args.n > kFusedTokens) return;
  // The block that arrives last sees everyone's scores.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(args.arrived, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) *args.arrived = 0;
  if (threadIdx.x / 32 < args.n) choose(args, threadIdx.x / 32);
}

__global__ void __launch_bounds__(32 * kChoosingWarps) choose_kernel(const Router args) {
  wait_for_previous();
  let_next_start();
  const uint32_t t = blockIdx.x * kChoosingWarps + threadIdx.x / 32;
  if (t < args.n) choose(args, t);
}

// Tiles of 32 tokens x 64 experts. Four groups of 64 threads take every fourth slice of 16 columns, each thread 4 x 8
// scores; a slice is summed apart from the rest, so that errors grow with the root of the slices, not of the columns.
constexpr int kTileTokens = 32, kTileExperts = 64, kSlice = 16, kSliceGroups = 4, kGroupThreads = 64;

template <typename W>
__global__ void __launch_bounds__(kSliceGroups* kGroupThreads, 2) score_many_kernel(const Router args) {
  struct Slice {
    float h[kSlice][kTileTokens + 4], w[kSlice][kTileExperts + 4];
  };
  __shared__ Slice slices[kSliceGroups];
  const uint32_t group = threadIdx.x / kGroupThreads, i = threadIdx.x % kGroupThreads;
  const uint32_t first_token = blockIdx.x * kTileTokens, first_expert = blockIdx.y * kTileExperts;
  const uint32_t token = 4 * (i / 8), expert = 4 * (i % 8);  // experts expert .. + 3 and expert + 32 .. + 35
  const uint32_t row = i / 4, vector = i % 4;                // this thread's share of loading
  Slice& slice = slices[group];
  const W* w = static_cast<const W*>(args.w);
  const uint32_t steps = (args.hidden / kSlice + kSliceGroups - 1) / kSliceGroups;
  float4 next_h[2], next_w[4];
  const auto fetch = [&](uint32_t step) {
    const uint32_t column = (step * kSliceGroups + group) * kSlice + 4 * vector;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint32_t e = first_expert + row + 16 * j;
      next_w[j] = e < args.experts && column < args.hidden ? load_weights(w, (size_t(e) * args.hidden + column) / 4)
                                                           : float4{0, 0, 0, 0};
    }
  };
  const auto fetch_h = [&](uint32_t step) {
    const uint32_t column = (step * kSliceGroups + group) * kSlice + 4 * vector;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const uint32_t t = first_token + row + 16 * j;
      next_h[j] = t < args.n && column < args.hidden
                      ? *reinterpret_cast<const float4*>(args.h + size_t(t) * args.hidden + column)
                      : float4{0, 0, 0, 0};
    }
  };
  fetch(0);
  wait_for_previous();
  let_next_start();
  fetch_h(0);
  float total[4][8] = {};
  for (uint32_t step = 0; step < steps; step++) {
    __syncthreads();  // the slice before has been read
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float v[4] = {next_h[j].x, next_h[j].y, next_h[j].z, next_h[j].w};
#pragma unroll
      for (int c = 0; c < 4; c++) slice.h[4 * vector + c][row + 16 * j] = v[c];
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float v[4] = {next_w[j].x, next_w[j].y, next_w[j].z, next_w[j].w};
#pragma unroll
      for (int c = 0; c < 4; c++) slice.w[4 * vector + c][row + 16 * j] = v[c];
    }
    __syncthreads();
    if (step + 1 < steps) {
      fetch(step + 1);
      fetch_h(step + 1);
    }
    float sum[4][8] = {};
#pragma unroll
    for (int k = 0; k < kSlice; k++) {
      const float4 a = *reinterpret_cast<const float4*>(&slice.h[k][token]);
      const float4 b = *reinterpret_cast<const float4*>(&slice.w[k][expert]);
      const float4 c = *reinterpret_cast<const float4*>(&slice.w[k][expert + 32]);
      const float hs[4] = {a.x, a.y, a.z, a.w}, ws[8] = {b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
#pragma unroll
      for (int y = 0; y < 4; y++)
#pragma unroll
        for (int x = 0; x < 8; x++) sum[y][x] = fmaf(hs[y], ws[x], sum[y][x]);
    }
#pragma unroll
    for (int y = 0; y < 4; y++)
#pragma unroll
      for (int x = 0; x < 8; x++) total[y][x] += sum[y][x];
  }
  // Groups 1, 2, 3 hand their sums to group 0 one after the other, in the memory of the slices.
  float* handed = reinterpret_cast<float*>(slices);  // [32][64 threads]
  static_assert(sizeof(slices) >= 32 * kGroupThreads * sizeof(float));
  for (uint32_t from = 1; from < kSliceGroups; from++) {
    __syncthreads();
    if (group == from) {
#pragma unroll
      for (int y = 0; y < 32; y++) handed[y * kGroupThreads + i] = total[y / 8][y % 8];
    }
    __syncthreads();
    if (group == 0) {
#pragma unroll
      for (int y = 0; y < 32; y++) total[y / 8][y % 8] += handed[y * kGroupThreads + i];
    }
  }
  if (group != 0) return;
#pragma unroll
  for (int y = 0; y < 4; y++)
#pragma unroll
    for (int x = 0; x < 8; x++) {
      const uint32_t t = first_token + token + y, e = first_expert + expert + 32 * (x / 4) + x % 4;
      if (t < args.n && e < args.experts)
        args.scores[size_t(t) * args.experts + e] = score_of(total[y][x], args.sigmoid);
    }
}

template <typename W>
cudaError_t score(cudaStream_t stream, const Router& args) {
  if (args.n <= kFewTokens) {
    CUDA_TRY(launch({args.experts, kFewThreads, 0, stream}, score_few_kernel<W>, args));
    return cudaSuccess;
  }
  const dim3 grid((args.n + kTileTokens - 1) / kTileTokens, (args.experts + kTileExperts - 1) / kTileExperts);
  CUDA_TRY(launch({grid, kSliceGroups * kGroupThreads, 0, stream}, score_many_kernel<W>, args));
  return cudaSuccess;
}

}  // namespace

cudaError_t route(cudaStream_t stream, const Router& args) {
  if (args.n == 0) return cudaSuccess;
  if (args.experts > kMostExperts || args.used > kMostUsed || args.groups > kMostGroups)
    CUDA_TRY(cudaErrorInvalidValue);
  if (args.type == DType::F32) {
    CUDA_TRY(score<float>(stream, args));
  } else if (args.type == DType::F16) {
    CUDA_TRY(score<__half>(stream, args));
  } else if (args.type == DType::BF16) {
    CUDA_TRY(score<bf16>(stream, args));
  } else {
    CUDA_TRY(cudaErrorInvalidValue);
  }
  if (args.n <= kFusedTokens) return cudaSuccess;
  CUDA_TRY(
      launch({(args.n + kChoosingWarps - 1) / kChoosingWarps, 32 * kChoosingWarps, 0, stream}, choose_kernel, args));
  return cudaSuccess;
}

}  // namespace perigee::cuda
