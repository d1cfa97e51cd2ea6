// What the two kernels of prompt attention have in common: the order of their tiles, softmax in base 2, and how a row
// ends. Both take one head and 128 queries a block, and walk over the chunk's keys with a running maximum.
#pragma once
#include "attention.h"
#include "launch.cuh"

namespace perigee::cuda {

// The widths that the kernels are made for; narrower heads are padded with zeros in shared memory.
constexpr int kNope = 128, kRope = 64, kValue = 128;
constexpr int kQueries = 128;  // rows of a block

// mma.sync, any device from sm_80.
cudaError_t attend_prompt_mma(cudaStream_t stream, const PromptAttention& args);
cudaError_t prepare_prompt_mma();

// TMA and wgmma, sm_90a: only where its machine code is there, and for heads of exactly the widths above.
bool prompt_wgmma_serves(const PromptAttention& args);
cudaError_t attend_prompt_wgmma(cudaStream_t stream, const PromptAttention& args);
cudaError_t prepare_prompt_wgmma();

// Blocks are dealt longest first, so that none is left alone at the end. Heads go in groups whose keys and values stay in
// the second-level cache while all their queries pass.
struct PromptOrder {
  uint32_t tiles, heads, group;
};
cudaError_t prompt_order(const PromptAttention& args, PromptOrder* order);
struct PromptTile {
  uint32_t head, first_row;
};
__device__ inline PromptTile prompt_tile(const PromptOrder& order, uint32_t index) {
  const uint32_t begin = index / (order.group * order.tiles) * order.group;
  const uint32_t heads = min(order.group, order.heads - begin), rest = index - begin * order.tiles;
  return {begin + rest % heads, (order.tiles - 1 - rest / heads) * kQueries};
}

// The first so many keys of the chunk are seen by a query.
__device__ inline int visible_keys(const PromptAttention& a, int row) {
  return min(max(a.first_query + row - a.first_key + 1, 0), static_cast<int>(a.keys));
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Over the four lanes that hold a row.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Running state of one query row. A row that has seen nothing has maximum -inf and sum 0, without any NaN on the way.
struct RowState {
  float max = -INFINITY, sum = 0;  // max of the raw products; sum is this lane's part

  // Takes a tile's largest product in: returns what earlier sums are to be multiplied with, and sets what is to be
  // subtracted from product * to_log2.
  __device__ float raise(float tile_max, float to_log2, float* subtract) {
    const float next = fmaxf(max, tile_max);
    *subtract = next == -INFINITY ? 0 : next * to_log2;
    const float keep = exp2_fast(max * to_log2 - *subtract);
    max = next;
    sum *= keep;
    return keep;
  }
};

// Factors that make the row's output of its running sum, and of the earlier chunks' output. All lanes of the row call it
// with the whole sum; one of them writes the logarithm.
struct RowEnd {
  float now, before;
};
__device__ inline RowEnd end_row(const PromptAttention& a, uint32_t row, uint32_t head, float max, float sum,
                                 bool writes) {
  float* at = a.lse + static_cast<uint64_t>(row) * a.heads + head;
  const float before = a.merge ? *at : -INFINITY;
  const float now = sum > 0 ? max * a.scale + logf(sum) : -INFINITY;
  const float most = fmaxf(before, now);
  RowEnd end = {0, 0};
  float lse = -INFINITY;
  if (most != -INFINITY) {
    const float e_before = expf(before - most), e_now = expf(now - most), both = e_before + e_now;
    lse = most + logf(both);
    end = {sum > 0 ? e_now / (both * sum) : 0, e_before / both};
  }
  __syncwarp(0xfu << (threadIdx.x & 28));  // the row's lanes have read it
  if (writes) *at = lse;
  return end;
}

// Two neighbouring outputs of a row.
__device__ inline void put(const PromptAttention& a, float* at, RowEnd end, float x, float y) {
  float2 out = {x * end.now, y * end.now};
  if (a.merge) {
    const float2 before = *reinterpret_cast<const float2*>(at);
    out = {fmaf(before.x, end.before, out.x), fmaf(before.y, end.before, out.y)};
  }
  *reinterpret_cast<float2*>(at) = out;
}

}  // namespace perigee::cuda
