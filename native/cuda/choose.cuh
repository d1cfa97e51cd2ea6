// The choice of one token's experts from its scores, by one warp. Rules and ties are those of engine/router.cc.
#pragma once
#include "stages.h"

namespace perigee::cuda {

constexpr uint32_t kMostExperts = 512, kMostUsed = 64, kMostGroups = 256;
constexpr int kChoosingWarps = 4;  // of a block

// Floats as integers of the same order; a NaN counts as -inf, and 0 lies below everything.
__device__ inline uint32_t ordered(float key) {
  if (key != key) key = -INFINITY;
  const uint32_t bits = __float_as_uint(key + 0.0f);  // -0 is 0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ inline float warp_max(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

__device__ inline float warp_sum(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

// DeepSeek-V3 judges a group by the sum of its two best keys; the softmax models (V2) by its best one.
__device__ inline float group_score(const float* keys, uint32_t count, bool sigmoid) {
  float first = -INFINITY, second = -INFINITY;
  for (uint32_t i = 0; i < count; i++) {
    if (keys[i] > first) {
      second = first;
      first = keys[i];
    } else if (keys[i] > second) {
      second = keys[i];
    }
  }
  return !sigmoid || count < 2 ? first : first + second;
}

// Rules out the keys of every group but the best `groups_used`.
__device__ inline void limit_groups(const Router& args, float* keys, float* of_groups, uint32_t lane) {
  const uint32_t size = args.experts / args.groups;
  for (uint32_t g = lane; g < args.groups; g += 32) of_groups[g] = group_score(keys + g * size, size, args.sigmoid);
  __syncwarp();
  for (uint32_t g = lane; g < args.groups; g += 32) {
    const uint32_t own = ordered(of_groups[g]);
    uint32_t better = 0;
    for (uint32_t other = 0; other < args.groups; other++) {
      const uint32_t its = ordered(of_groups[other]);
      better += its > own || (its == own && other < g);
    }
    if (better >= args.groups_used)
      for (uint32_t e = 0; e < size; e++) keys[g * size + e] = -INFINITY;
  }
  __syncwarp();
}

// The `used` largest keys, best first, ties to the lower index; chosen[used] in shared memory.
__device__ inline void top_keys(const float* keys, uint32_t experts, uint32_t used, int32_t* chosen, uint32_t lane) {
  constexpr uint32_t kMostOwn = kMostExperts / 32;
  const uint32_t own = (experts + 31) / 32, begin = lane * own;  // a lane has neighbours: lower lane, lower index
  uint32_t held[kMostOwn];
#pragma unroll
  for (uint32_t i = 0; i < kMostOwn; i++) held[i] = i < own && begin + i < experts ? ordered(keys[begin + i]) : 0;
  for (uint32_t k = 0; k < used; k++) {
    uint32_t best = 0;
#pragma unroll
    for (uint32_t i = 0; i < kMostOwn; i++) best = max(best, held[i]);
    const uint32_t winner = __reduce_max_sync(~0u, best);
    const uint32_t lanes = __ballot_sync(~0u, best == winner);
    if (lane != __ffs(lanes) - 1) continue;
    bool taken = false;
#pragma unroll
    for (uint32_t i = 0; i < kMostOwn; i++) {
      if (taken || held[i] != winner) continue;
      taken = true;
      held[i] = 0;
      chosen[k] = begin + i;
    }
  }
  __syncwarp();
}

// Chooses for token t. Called by whole warps of a block of kChoosingWarps.
__device__ inline void choose(const Router& args, uint32_t t) {
  __shared__ float scores_of[kChoosingWarps][kMostExperts], keys_of[kChoosingWarps][kMostExperts],
      groups_of[kChoosingWarps][kMostGroups];
  __shared__ int32_t chosen_of[kChoosingWarps][kMostUsed];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float *scores = scores_of[warp], *keys = keys_of[warp];
  int32_t* chosen = chosen_of[warp];
  float highest = -INFINITY;
  for (uint32_t e = lane; e < args.experts; e += 32) {
    scores[e] = __ldcg(args.scores + size_t(t) * args.experts + e);
    highest = fmaxf(highest, scores[e]);
  }
  if (!args.sigmoid) {
    highest = warp_max(highest);
    float sum = 0;
    for (uint32_t e = lane; e < args.experts; e += 32) sum += scores[e] = expf(scores[e] - highest);
    sum = warp_sum(sum);
    for (uint32_t e = lane; e < args.experts; e += 32) scores[e] /= sum;
  }
  for (uint32_t e = lane; e < args.experts; e += 32) keys[e] = scores[e] + args.bias[e];
  __syncwarp();
  if (args.groups > 1) limit_groups(args, keys, groups_of[warp], lane);
  top_keys(keys, args.experts, args.used, chosen, lane);
  float sum = 0;
  for (uint32_t k = 0; k < args.used; k++) sum += scores[chosen[k]];
  for (uint32_t k = lane; k < args.used; k += 32) {
    const size_t at = size_t(t) * args.used + k;
    const float score = scores[chosen[k]];
    args.chosen[at] = chosen[k];
    args.weight[at] = (args.normalize ? score / (sum + 1e-20f) : score) * args.weight_scale;
    atomicAdd(args.counts + chosen[k], 1u);
  }
}

}  // namespace perigee::cuda
