// What the kernels of gemm share: one description of dense, batched and grouped products, and the walk over their tiles.
#pragma once
#include "gemm_kernels.h"

namespace perigee::cuda {

// A tile of the result: rows first .. first + rows of y, columns column .. of group (or batch entry) `group`.
struct Tile {
  uint32_t group, first, rows, column;
};

// Tile `index` of one group, by bands of `band` tiles of rows: tiles that run at the same time are then near each other in
// both directions, and what they read comes from the second-level cache.
__device__ inline uint2 raster(uint32_t index, uint32_t row_tiles, uint32_t column_tiles, uint32_t band) {
  const uint32_t first = index / (band * column_tiles) * band, in_band = index % (band * column_tiles);
  const uint32_t height = min(band, row_tiles - first);
  return {first + in_band % height, in_band / height};
}

// The tiles of a product, in the order in which blocks take them. All threads of a block of kThreads make it together;
// groups' sizes are known on the device only.
template <uint32_t kTileRows, uint32_t kTileColumns, uint32_t kThreads>
class Tiles {
 public:
  struct Space {
    uint32_t begin[kMostGroups + 1];  // first tile of each group
    uint32_t sums[kThreads / 32];
  };

  __device__ Tiles(const Product& p, Space& space) : p_(p), space_(space) {
    column_tiles_ = (p.n + kTileColumns - 1) / kTileColumns;
    if (p.begin == nullptr) {
      const uint32_t row_tiles = (p.m + kTileRows - 1) / kTileRows;
      count_ = row_tiles * column_tiles_ * p.groups;
    } else {
      sum_groups();
      count_ = space.begin[kMostGroups];
    }
  }

  __device__ uint32_t count() const { return count_; }

  __device__ Tile operator[](uint32_t index) const {
    uint32_t group, begin = 0, rows = p_.m;
    if (p_.begin == nullptr) {
      const uint32_t per_group = count_ / p_.groups;
      group = index / per_group;
      index %= per_group;
    } else {
      group = 0;  // the last group that begins at or before the tile
      for (uint32_t step = kMostGroups / 2; step > 0; step /= 2)
        if (space_.begin[group + step] <= index) group += step;
      index -= space_.begin[group];
      begin = p_.begin[group];
      rows = p_.begin[group + 1] - begin;
    }
    const uint2 at = raster(index, (rows + kTileRows - 1) / kTileRows, column_tiles_, 2048 / kTileRows);
    const uint32_t first = at.x * kTileRows;
    return {group, begin + first, min(kTileRows, rows - first), at.y * kTileColumns};
  }

 private:
  __device__ uint32_t tiles_of(uint32_t group) const {
    if (group >= p_.groups) return 0;
    const uint32_t rows = p_.begin[group + 1] - p_.begin[group];
    return (rows + kTileRows - 1) / kTileRows * column_tiles_;
  }

  // Prefix sums: each thread has a few neighbouring groups, each warp scans its threads, then the warps' sums.
  __device__ void sum_groups() {
    constexpr uint32_t kOwn = (kMostGroups + kThreads - 1) / kThreads;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t own[kOwn], sum = 0;
    for (uint32_t i = 0; i < kOwn; i++) sum += own[i] = tiles_of(threadIdx.x * kOwn + i);
    uint32_t before = sum;
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint32_t other = __shfl_up_sync(~0u, before, distance);
      if (lane >= distance) before += other;
    }
    if (lane == 31) space_.sums[warp] = before;
    before -= sum;
    __syncthreads();
    for (uint32_t w = 0; w < warp; w++) before += space_.sums[w];
    for (uint32_t i = 0; i < kOwn; i++) {
      if (threadIdx.x * kOwn + i < kMostGroups) space_.begin[threadIdx.x * kOwn + i] = before;
      before += own[i];
    }
    if (threadIdx.x == kThreads - 1) space_.begin[kMostGroups] = before;
    __syncthreads();
  }

  const Product& p_;
  Space& space_;
  uint32_t column_tiles_, count_;
};

// Neighbouring values of a row of the result, which begins at `row`: two, or four, or eight as bf16.
__device__ inline void store_pair(const Product& p, uint64_t row, uint32_t column, float v0, float v1) {
  const uint64_t at = row + column;
  if (p.aligned && column + 1 < p.n) {
    if (p.y_wide != nullptr) {
      *reinterpret_cast<__nv_bfloat162*>(p.y_wide + at) = __floats2bfloat162_rn(v0, v1);
      return;
    }
    float2* y = reinterpret_cast<float2*>(p.y + at);
    const float2 old = p.add ? *y : float2{0, 0};
    *y = {old.x + v0, old.y + v1};
    return;
  }
  const float v[2] = {v0, v1};
  for (uint32_t i = 0; i < 2 && column + i < p.n; i++) {
    if (p.y_wide != nullptr) p.y_wide[at + i] = __float2bfloat16(v[i]);
    else p.y[at + i] = (p.add ? p.y[at + i] : 0.0f) + v[i];
  }
}

__device__ inline void store_four(const Product& p, uint64_t row, uint32_t column, float4 v) {
  if (p.aligned && p.y_wide == nullptr && column + 3 < p.n) {
    float4* y = reinterpret_cast<float4*>(p.y + row + column);
    const float4 old = p.add ? *y : float4{0, 0, 0, 0};
    *y = {old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w};
    return;
  }
  store_pair(p, row, column, v.x, v.y);
  store_pair(p, row, column + 2, v.z, v.w);
}

__device__ inline void store_eight_wide(const Product& p, uint64_t row, uint32_t column, float4 v0, float4 v1) {
  if (p.aligned && column + 7 < p.n) {
    const __nv_bfloat162 v[4] = {__floats2bfloat162_rn(v0.x, v0.y), __floats2bfloat162_rn(v0.z, v0.w),
                                 __floats2bfloat162_rn(v1.x, v1.y), __floats2bfloat162_rn(v1.z, v1.w)};
    *reinterpret_cast<uint4*>(p.y_wide + row + column) = *reinterpret_cast<const uint4*>(v);
    return;
  }
  store_four(p, row, column, v0);
  store_four(p, row, column + 4, v1);
}

}  // namespace perigee::cuda
