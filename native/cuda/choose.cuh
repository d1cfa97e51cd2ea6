// The choice of one token's experts from its scores, by one warp. Rules and ties are those of engine/router.cc.
#pragma once
#include "stages.h"

namespace perigee::cuda {

constexpr uint32_t kMostExperts = 512, kMostUsed = 64, kMostGroups = 256;
constexpr uint32_t kMostOwn = kMostExperts / 32;  // experts of a lane
constexpr int kChoosingWarps = 4;                 // of a block

// Floats as integers of the same order; a NaN counts as -inf, and 0 lies below everything.
__device__ inline uint32_t ordered(float key) {
  if (key != key) key = -INFINITY;
  const uint32_t bits = __float_as_uint(key + 0.0f);  // -0 is 0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
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

// Logits become probabilities.
__device__ inline void softmax(float (&scores)[kMostOwn], uint32_t count) {
  float highest = -INFINITY, sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kMostOwn; i++)
    if (i < count) highest = fmaxf(highest, scores[i]);
  for (int lanes = 16; lanes > 0; lanes /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, lanes));
#pragma unroll
  for (uint32_t i = 0; i < kMostOwn; i++)
    if (i < count) sum += scores[i] = expf(scores[i] - highest);
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
#pragma unroll
  for (uint32_t i = 0; i < kMostOwn; i++)
    if (i < count) scores[i] /= sum;
}

// A lane's share of the experts: neighbours, so that a lower lane has lower indices.
struct OwnExperts {
  uint32_t begin, count;
  __device__ OwnExperts(uint32_t experts, uint32_t lane) {
    const uint32_t own = (experts + 31) / 32;
    begin = min(lane * own, experts);
    count = min(own, experts - begin);
  }
};

// What lane k % 32 learns of choice k.
struct Choice {
  int32_t expert = 0;
  float score = 0;
};

// The `used` largest keys, best first, ties to the lower index. Returns the sum of their scores, in that order.
__device__ inline float top_keys(const OwnExperts& own, const float (&scores)[kMostOwn], uint32_t (&keys)[kMostOwn],
                                 uint32_t used, uint32_t lane, Choice (&choices)[kMostUsed / 32]) {
  float sum = 0;
  for (uint32_t k = 0; k < used; k++) {
    uint32_t best = 0;
#pragma unroll
    for (uint32_t i = 0; i < kMostOwn; i++) best = max(best, keys[i]);
    const uint32_t winner = __reduce_max_sync(~0u, best);
    const uint32_t from = __ffs(__ballot_sync(~0u, best == winner)) - 1;
    uint32_t at = 0;
    float score = 0;
    bool taken = false;
#pragma unroll
    for (uint32_t i = 0; i < kMostOwn; i++) {
      const bool it = !taken && keys[i] == winner;
      taken |= it;
      at = it ? i : at;
      score = it ? scores[i] : score;
      keys[i] = it && lane == from ? 0 : keys[i];
    }
    const Choice choice = {static_cast<int32_t>(__shfl_sync(~0u, own.begin + at, from)), __shfl_sync(~0u, score, from)};
    sum += choice.score;
    if (lane == k % 32) choices[k / 32] = choice;
  }
  return sum;
}

// Calls use(k, expert, weight) for each choice of token t, each in one lane of the warp. `bias` [kMostOwn] is the lane's.
template <typename Use>
__device__ inline void choose(const Router& args, uint32_t t, const float (&bias)[kMostOwn], Use use) {
  __shared__ float keys_of[kChoosingWarps][kMostExperts], groups_of[kChoosingWarps][kMostGroups];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const OwnExperts own(args.experts, lane);
  float scores[kMostOwn];
#pragma unroll
  for (uint32_t i = 0; i < kMostOwn; i++)
    scores[i] = i < own.count ? args.scores[size_t(t) * args.experts + own.begin + i] : 0;
  if (!args.sigmoid) softmax(scores, own.count);
  uint32_t keys[kMostOwn];
#pragma unroll
  for (uint32_t i = 0; i < kMostOwn; i++) keys[i] = i < own.count ? ordered(scores[i] + bias[i]) : 0;
  if (args.groups > 1) {
    float* limited = keys_of[warp];
#pragma unroll
    for (uint32_t i = 0; i < kMostOwn; i++)
      if (i < own.count) limited[own.begin + i] = scores[i] + bias[i];
    __syncwarp();
    limit_groups(args, limited, groups_of[warp], lane);
#pragma unroll
    for (uint32_t i = 0; i < kMostOwn; i++) keys[i] = i < own.count ? ordered(limited[own.begin + i]) : 0;
  }
  Choice choices[kMostUsed / 32];
  const float divisor = top_keys(own, scores, keys, args.used, lane, choices) + 1e-20f;
#pragma unroll
  for (uint32_t i = 0; i < kMostUsed / 32; i++) {
    const uint32_t k = 32 * i + lane;
    if (k >= args.used) break;
    const Choice& c = choices[i];
    use(k, c.expert, (args.normalize ? c.score / divisor : c.score) * args.weight_scale);
  }
}

}  // namespace perigee::cuda
