// Tokens sorted by expert, and experts' outputs gathered by token.
#include "launch.cuh"
#include "stages.h"

namespace perigee::cuda {
namespace {

constexpr uint32_t kMostGroups = 512;
constexpr int kSortWarps = 32, kAtOnce = 8;  // kAtOnce: rounds whose loads are in flight together

// Where the count of a warp's group lies. Neighbouring groups lie in different banks: a warp counts 32 groups at once.
__device__ uint32_t entry(uint32_t group, uint32_t warp) { return group * kSortWarps + (warp + group) % kSortWarps; }

// The group of slot s, or -1.
__device__ int32_t group_at(const Groups& args, uint32_t s, uint32_t end) {
  if (s >= end) return -1;
  const int32_t expert = args.chosen[s];
  if (expert < 0 || expert >= static_cast<int32_t>(args.experts)) return -1;
  return args.group_of ? args.group_of[expert] : expert;
}

// A stable counting sort by one block. Every warp has a run of neighbouring slots: it counts its groups, all counts are
// summed group by group, warp by warp, and it deals its slots out from there in order.
__global__ void __launch_bounds__(32 * kSortWarps) group_kernel(const Groups args) {
  extern __shared__ int32_t places[];  // [groups][kSortWarps] counts, then the next place of a warp's slots
  __shared__ int32_t of_warps[kSortWarps];
  wait_for_previous();
  let_next_start();
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, slots = args.n * args.used;
  const uint32_t run = (slots + 32 * kSortWarps - 1) / (32 * kSortWarps) * 32;
  const uint32_t begin = warp * run, end = min(begin + run, slots);
  const uint32_t entries = args.experts * kSortWarps;
  for (uint32_t i = threadIdx.x; i < entries; i += blockDim.x) places[i] = 0;
  __syncthreads();
  for (uint32_t s = begin; s < end; s += 32 * kAtOnce) {
    int32_t groups[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) groups[i] = group_at(args, s + 32 * i + lane, end);
#pragma unroll
    for (int i = 0; i < kAtOnce; i++)
      if (groups[i] >= 0) atomicAdd(&places[entry(groups[i], warp)], 1);
  }
  __syncthreads();

  // The exclusive sum over all entries, a run of them per thread.
  const uint32_t own = (entries + blockDim.x - 1) / blockDim.x, first = min(threadIdx.x * own, entries),
                 behind = min(first + own, entries);
  int32_t sum = 0;
  for (uint32_t i = first; i < behind; i++) sum += places[entry(i / kSortWarps, i % kSortWarps)];
  int32_t before = sum;  // inclusive over the warp's threads
  for (uint32_t lanes = 1; lanes < 32; lanes *= 2) {
    const int32_t lower = __shfl_up_sync(~0u, before, lanes);
    if (lane >= lanes) before += lower;
  }
  if (lane == 31) of_warps[warp] = before;
  __syncthreads();
  before -= sum;
  for (uint32_t w = 0; w < warp; w++) before += of_warps[w];
  for (uint32_t i = first; i < behind; i++) {
    int32_t& place = places[entry(i / kSortWarps, i % kSortWarps)];
    const int32_t count = place;
    place = before;
    if (i % kSortWarps == 0) args.begin[i / kSortWarps] = before;
    before += count;
  }
  if (threadIdx.x == blockDim.x - 1) args.begin[args.experts] = before;
  __syncthreads();

  for (uint32_t s = begin; s < end; s += 32 * kAtOnce) {
    int32_t groups[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) groups[i] = group_at(args, s + 32 * i + lane, end);
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const uint32_t slot = s + 32 * i + lane;
      const int32_t group = groups[i];
      const uint32_t equals = __match_any_sync(~0u, group), rank = __popc(equals & ((1u << lane) - 1));
      int32_t place = -1;
      if (group >= 0) place = places[entry(group, warp)] + static_cast<int32_t>(rank);
      __syncwarp();
      if (group >= 0 && rank == 0) places[entry(group, warp)] += __popc(equals);
      __syncwarp();
      if (slot < end) args.slot_of[slot] = place;
      if (place >= 0) args.token_of[place] = static_cast<int32_t>(slot / args.used);
    }
  }
}

constexpr uint32_t kMostGathered = 64, kGatheredAtOnce = 8;

// A block a token, eight columns a thread at a time.
__global__ void __launch_bounds__(256) gather_kernel(const bf16* y, const int32_t* slot_of, const float* weight,
                                                     uint32_t used, uint32_t hidden, float* sum) {
  __shared__ int32_t slots[kMostGathered];
  __shared__ float weights[kMostGathered];
  wait_for_previous();
  let_next_start();
  const size_t token = blockIdx.x;
  if (threadIdx.x < used) {
    slots[threadIdx.x] = slot_of[token * used + threadIdx.x];
    weights[threadIdx.x] = weight[token * used + threadIdx.x];
  }
  __syncthreads();
  for (uint32_t c = 8 * threadIdx.x; c < hidden; c += 8 * blockDim.x) {
    float total[8] = {};
    for (uint32_t first = 0; first < used; first += kGatheredAtOnce) {
      uint4 bits[kGatheredAtOnce];
#pragma unroll
      for (uint32_t i = 0; i < kGatheredAtOnce; i++) {
        const int32_t slot = first + i < used ? slots[first + i] : -1;
        bits[i] = slot < 0 ? uint4{0, 0, 0, 0} : __ldcs(reinterpret_cast<const uint4*>(y + size_t(slot) * hidden + c));
      }
#pragma unroll
      for (uint32_t i = 0; i < kGatheredAtOnce; i++) {
        if (first + i >= used) break;
        const float w = weights[first + i];
        const uint32_t words[4] = {bits[i].x, bits[i].y, bits[i].z, bits[i].w};
#pragma unroll
        for (int p = 0; p < 4; p++) {
          total[2 * p] += w * __uint_as_float(words[p] << 16);
          total[2 * p + 1] += w * __uint_as_float(words[p] & 0xffff0000u);
        }
      }
    }
    float4* to = reinterpret_cast<float4*>(sum + token * hidden + c);
    to[0] = {total[0], total[1], total[2], total[3]};
    to[1] = {total[4], total[5], total[6], total[7]};
  }
}

}  // namespace

cudaError_t group_by_expert(cudaStream_t stream, const Groups& args) {
  if (args.experts > kMostGroups) CUDA_TRY(cudaErrorInvalidValue);
  const size_t shared = size_t(args.experts) * kSortWarps * sizeof(int32_t);
  if (shared > 47 * 1024)  // beside a little static memory
    CUDA_TRY(cudaFuncSetAttribute(group_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  CUDA_TRY(launch({1, 32 * kSortWarps, shared, stream}, group_kernel, args));
  return cudaSuccess;
}

cudaError_t gather_experts(cudaStream_t stream, const bf16* y, const int32_t* slot_of, const float* weight, uint32_t n,
                           uint32_t used, uint32_t hidden, float* sum) {
  if (n == 0) return cudaSuccess;
  if (used > kMostGathered) CUDA_TRY(cudaErrorInvalidValue);
  CUDA_TRY(launch({n, 256, 0, stream}, gather_kernel, y, slot_of, weight, used, hidden, sum));
  return cudaSuccess;
}

}  // namespace perigee::cuda
