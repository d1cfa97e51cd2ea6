// The router: scores in float, whatever the weights' type, and the choice of experts from them. Two forms of the scores:
// for few tokens every warp holds its share of the weights in registers before the tokens are there; for many, tiles.
#include <cuda_fp16.h>

#include "choose.cuh"
#include "exchange.cuh"
#include "launch.cuh"
#include "stages.h"

namespace perigee::cuda {
namespace {

constexpr uint32_t kFewTokens = 256;  // above it the tiles are faster: here every block reads h
constexpr uint32_t kFewThreads = 384, kShared = 3, kTokensAtOnce = 32;
constexpr uint32_t kHandedTokens = kChoosingWarps;  // whose layer the block that chooses hands over
constexpr int kHandingThreads = 32 * kChoosingWarps + 768;

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

// A block has up to kShared neighbouring experts, as many as make all blocks run at once, and each thread kHeld vectors of
// each: 7168 columns need no others.
template <typename W>
__global__ void __launch_bounds__(kFewThreads) score_few_kernel(const Router args, uint32_t shared) {
  constexpr uint32_t kHeld = 5, kWarps = kFewThreads / 32;
  __shared__ float parts[kTokensAtOnce][kShared][kWarps];
  const uint32_t vectors = args.hidden / 4, first = blockIdx.x * shared, count = min(shared, args.experts - first);
  const W* w = static_cast<const W*>(args.w) + size_t(first) * args.hidden;
  float4 held[kShared][kHeld];
#pragma unroll
  for (uint32_t e = 0; e < kShared; e++)
#pragma unroll
    for (uint32_t i = 0; i < kHeld; i++) {
      const uint32_t v = threadIdx.x + i * kFewThreads;
      held[e][i] = e < count && v < vectors ? load_weights(w, size_t(e) * vectors + v) : float4{0, 0, 0, 0};
    }
  wait_for_previous();
  let_next_start();
  for (uint32_t begin = 0; begin < args.n; begin += kTokensAtOnce) {
    const uint32_t tokens = min(kTokensAtOnce, args.n - begin);
    for (uint32_t t = 0; t < tokens; t++) {
      const float4* h = reinterpret_cast<const float4*>(args.h) + size_t(begin + t) * vectors;
      float sum[kShared] = {};
#pragma unroll
      for (uint32_t i = 0; i < kHeld; i++) {
        const uint32_t v = threadIdx.x + i * kFewThreads;
        const float4 x = v < vectors ? h[v] : float4{0, 0, 0, 0};
#pragma unroll
        for (uint32_t e = 0; e < kShared; e++) sum[e] = dot(x, held[e][i], sum[e]);
      }
      for (uint32_t v = threadIdx.x + kHeld * kFewThreads; v < vectors; v += kFewThreads)
#pragma unroll
        for (uint32_t e = 0; e < kShared; e++)
          if (e < count) sum[e] = dot(h[v], load_weights(w, size_t(e) * vectors + v), sum[e]);
#pragma unroll
      for (uint32_t e = 0; e < kShared; e++) {
        for (int lanes = 16; lanes > 0; lanes /= 2) sum[e] += __shfl_xor_sync(~0u, sum[e], lanes);
        if (threadIdx.x % 32 == 0) parts[t][e][threadIdx.x / 32] = sum[e];
      }
    }
    __syncthreads();
    if (threadIdx.x < tokens * kShared && threadIdx.x % kShared < count) {
      const uint32_t t = threadIdx.x / kShared, e = threadIdx.x % kShared;
      float sum = 0;
#pragma unroll
      for (uint32_t warp = 0; warp < kWarps; warp++) sum += parts[t][e][warp];
      args.scores[size_t(begin + t) * args.experts + first + e] = score_of(sum, args.sigmoid);
    }
    __syncthreads();
  }
}

// The first kChoosingWarps warps choose for a token each; where a layer is handed over, the others bring h to the host.
__global__ void __launch_bounds__(kHandingThreads) choose_kernel(const Router args) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = blockIdx.x * kChoosingWarps + warp;
  const OwnExperts own(args.experts, lane);
  float bias[kMostOwn] = {};
#pragma unroll
  for (uint32_t i = 0; i < kMostOwn; i++)
    if (warp < kChoosingWarps && i < own.count) bias[i] = args.bias[own.begin + i];
  wait_for_previous();
  let_next_start();
  const HandOver& over = args.hand_over;
  if (warp < kChoosingWarps && t < args.n) {
    choose(args, t, bias, [&](uint32_t k, int32_t expert, float weight) {
      const size_t at = size_t(t) * args.used + k;
      args.chosen[at] = expert;
      args.weight[at] = weight;
      atomicAdd(args.counts + expert, 1u);
      if (over.number == 0) return;
      over.to.chosen[at] = for_ranks(expert, over.resident);
      over.to.weight[at] = weight;
    });
  }
  if (over.number == 0) return;
  constexpr uint32_t kChoosing = 32 * kChoosingWarps;
  if (warp >= kChoosingWarps)
    for (uint32_t v = threadIdx.x - kChoosing; v < args.n * args.hidden / 4; v += blockDim.x - kChoosing)
      reinterpret_cast<float4*>(over.to.h)[v] = reinterpret_cast<const float4*>(args.h)[v];
  __syncthreads();
  if (threadIdx.x == 0) release(over.to.asked, over.number);
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
  if (args.n > kFewTokens) {
    const dim3 grid((args.n + kTileTokens - 1) / kTileTokens, (args.experts + kTileExperts - 1) / kTileExperts);
    CUDA_TRY(launch({grid, kSliceGroups * kGroupThreads, 0, stream}, score_many_kernel<W>, args));
    return cudaSuccess;
  }
  int device, processors;
  CUDA_TRY(cudaGetDevice(&device));
  CUDA_TRY(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  uint32_t shared = 1;
  while (shared < kShared && args.experts > shared * processors) shared++;
  CUDA_TRY(launch({(args.experts + shared - 1) / shared, kFewThreads, 0, stream}, score_few_kernel<W>, args, shared));
  return cudaSuccess;
}

// The choice and, where it is asked for, its way to the ranks.
cudaError_t choose(cudaStream_t stream, const Router& args) {
  Router now = args;
  const HandOver& over = args.hand_over;
  const bool at_once = over.number && args.n <= kHandedTokens;
  if (!at_once) now.hand_over = {};
  CUDA_TRY(launch(
      {(args.n + kChoosingWarps - 1) / kChoosingWarps, at_once ? kHandingThreads : 32 * kChoosingWarps, 0, stream},
      choose_kernel, now));
  if (over.number == 0 || at_once) return cudaSuccess;
  return publish(stream, {over.to, args.h, args.chosen, args.weight, over.resident, args.n, args.hidden, args.used,
                          over.number, args.arrived});
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
  return choose(stream, args);
}

}  // namespace perigee::cuda
