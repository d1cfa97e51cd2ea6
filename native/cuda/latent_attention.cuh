// How absorbed attention is dealt out to the multiprocessors, for the kernels that meet 512 + 64 wide latents.
//
// A group is what shares one reading of latents: a token, or a pair of neighbours. Its rows (tokens x heads) are cut into
// tiles of query rows, and its context into runs of 64-token spans. A lane is one block for each tile; all blocks of a lane
// walk the same spans at the same time, so that the second reads what the first brought to the L2 cache. What each lane
// does follows from the positions, which only the device knows: every warp works it out for itself.
#pragma once
#include "attention.h"
#include "launch.cuh"

namespace perigee::cuda {

constexpr uint32_t kSpan = 64;  // tokens that a lane meets at least
constexpr uint32_t kLatent = 512, kRope = 64, kKey = kLatent + kRope;

// Runs that cover only a part of a context leave normalized bf16 rows and the log2 of their sum of exponents. Two places a
// lane: 0 for a run that continues a context, 1 for one that begins a context and does not end it. Columns within 32 are
// stored in the order of the accumulators: place 8 q + 2 j + e holds column 8 j + 2 q + e.
struct LatentParts {
  bf16* rows;     // [lanes][2][tiles][tile rows][kLatent]
  float* lse;     // [lanes][2][tiles][tile rows]
  uint2* spread;  // [groups] lanes first .. first + count of a group; count 1: it is finished, 0: nothing is visible
};

struct LatentWork {
  LatentAttention args;
  LatentParts parts;
  uint32_t groups, together;  // tokens in a group, 1 or 2
  uint32_t lanes, tiles, tile_rows;

  __host__ __device__ uint32_t rows() const { return together * args.heads; }
};

// A run of spans of one group.
struct LatentRun {
  uint32_t group, begin, end, spans;  // of `spans` in all
  __device__ bool whole() const { return begin == 0 && end == spans; }
};

#ifdef __CUDACC__

// Parameters lie in memory that no cache has yet: one thread reads their lines before wait_for_previous(), all at once.
// What it gives must go to shared memory, or the compiler leaves the reading out.
__device__ inline uint64_t read_ahead(const LatentWork& work) {
  return reinterpret_cast<uint64_t>(work.args.latents.pages) ^ reinterpret_cast<uint64_t>(work.args.positions) ^
         reinterpret_cast<uint64_t>(work.args.out) ^ reinterpret_cast<uint64_t>(work.parts.rows) ^ work.groups ^
         work.tile_rows;
}

__device__ inline int32_t group_tokens(const LatentWork& work, uint32_t group) {
  const uint32_t first = group * work.together, second = min(first + work.together, work.args.n) - 1;
  return max(work.args.positions[first], work.args.positions[second]) + 1;
}

__device__ inline uint32_t group_spans(const LatentWork& work, uint32_t group) {
  return group < work.groups ? (group_tokens(work, group) + kSpan - 1) / kSpan : 0;
}

// Sums of `value` over this and all lower threads of the warp.
__device__ inline uint32_t warp_sums(uint32_t value) {
  for (uint32_t d = 1; d < 32; d *= 2) {
    const uint32_t below = __shfl_up_sync(~0u, value, d);
    if (threadIdx.x % 32 >= d) value += below;
  }
  return value;
}

// The runs of one lane, in order. All threads of a warp construct and advance it together.
class LatentRuns {
 public:
  __device__ LatentRuns(const LatentWork& work, uint32_t lane) : work_(work) {
    const uint32_t l = threadIdx.x % 32;
    uint32_t total = 0, longest = 0;
#pragma unroll 1
    for (uint32_t base = l; base < work.groups; base += 128) {
#pragma unroll
      for (uint32_t g = base; g < base + 128; g += 32) {
        const uint32_t spans = group_spans(work, g);
        total += spans;
        longest = max(longest, spans);
      }
    }
    total_ = __reduce_add_sync(~0u, total);
    longest = __reduce_max_sync(~0u, longest);
    // Even cuts of every group, unless their lengths differ so much that lanes would idle: then equal stretches of all
    // groups' spans laid end to end, though that leaves parts to merge.
    const uint32_t share = (total_ + work.lanes - 1) / work.lanes;
    cuts_ = work.lanes / work.groups;
    if (cuts_ > 0 && (longest + cuts_ - 1) / cuts_ > share + max(2u, share / 8)) cuts_ = 0;
    if (cuts_ > 0) {
      group_ = lane / cuts_;
      const uint32_t spans = group_spans(work, group_), width = (spans + cuts_ - 1) / cuts_;
      at_ = lane % cuts_ * width;
      end_ = min(at_ + width, spans);
      start_ = 0;
    } else {
      at_ = stretch(lane);
      end_ = stretch(lane + 1);
      group_ = start_ = 0;
#pragma unroll 1
      for (uint32_t base = 0; base < work.groups && at_ < end_; base += 32) {
        const uint32_t ends = start_ + warp_sums(group_spans(work, base + l));
        const uint32_t beyond = __ballot_sync(~0u, ends > at_);
        if (beyond) {
          group_ = base + __ffs(beyond) - 1;
          start_ = __shfl_sync(~0u, ends, __ffs(beyond) - 1) - group_spans(work, group_);
          break;
        }
        start_ = __shfl_sync(~0u, ends, 31);
      }
    }
  }

  __device__ bool next(LatentRun& run) {
    if (at_ >= end_) return false;
    uint32_t spans = group_spans(work_, group_);
    for (; at_ >= start_ + spans; spans = group_spans(work_, ++group_)) start_ += spans;
    run = {group_, at_ - start_, min(end_ - start_, spans), spans};
    at_ = start_ + run.end;
    return true;
  }

  // The lanes that meet a group whose first span is number `start` of all.
  __device__ uint2 spread(uint32_t group, uint32_t start, uint32_t spans) const {
    if (spans == 0) return {0, 0};
    if (cuts_ > 0) {
      const uint32_t width = (spans + cuts_ - 1) / cuts_;
      return {group * cuts_, (spans + width - 1) / width};
    }
    const uint32_t first = lane_of(start);
    return {first, lane_of(start + spans - 1) - first + 1};
  }

 private:
  __device__ uint32_t stretch(uint32_t lane) const { return lane * total_ / work_.lanes; }
  __device__ uint32_t lane_of(uint32_t span) const { return ((span + 1) * work_.lanes - 1) / total_; }

  const LatentWork& work_;
  uint32_t total_, cuts_;
  uint32_t group_, start_;  // the group of the next span, and where that group begins
  uint32_t at_, end_;       // spans still to do
};

// One warp notes for every group which lanes meet it.
__device__ inline void note_spreads(const LatentWork& work, const LatentRuns& runs) {
  const uint32_t l = threadIdx.x % 32;
  uint32_t start = 0;
#pragma unroll 1
  for (uint32_t base = 0; base < work.groups; base += 32) {
    const uint32_t spans = group_spans(work, base + l);
    const uint32_t sum = warp_sums(spans);
    if (base + l < work.groups) work.parts.spread[base + l] = runs.spread(base + l, start + sum - spans, spans);
    start += __shfl_sync(~0u, sum, 31);
  }
}

// Where a run that is not whole leaves row 0 of a tile, in rows.
__device__ inline uint32_t part_row(const LatentWork& work, uint32_t lane, uint32_t place, uint32_t tile) {
  return ((lane * 2 + place) * work.tiles + tile) * work.tile_rows;
}

// The last position that a row of a group may see.
__device__ inline int32_t row_limit(const LatentWork& work, uint32_t group, uint32_t row) {
  const uint32_t token = group * work.together + row / work.args.heads;
  return row < work.rows() && token < work.args.n ? work.args.positions[token] : -1;
}

// Two rows of a thread's accumulators (columns first + 8 i + 2 (lane % 4), rows 8 apart, as mma leaves them) to where the
// run's rows belong. `inverse` is 1 / sum of exponents, or 0 where nothing was seen.
template <int Blocks>  // of 8 columns, a multiple of 4
__device__ inline void leave_rows(const LatentWork& work, const LatentRun& run, uint32_t lane, uint32_t tile,
                                  uint32_t row, uint32_t first, const float (&o)[4 * Blocks], const float inverse[2]) {
  const uint32_t quad = threadIdx.x % 4, place = run.begin == 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t in_tile = row + 8 * half, r = tile * work.tile_rows + in_tile;
    const float scale = inverse[half];
    if (!run.whole()) {
      bf16* to = work.parts.rows + (part_row(work, lane, place, tile) + in_tile) * kLatent + first + 8 * quad;
#pragma unroll
      for (int i = 0; i < Blocks; i += 4) {
        __nv_bfloat162 packed[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
          packed[j] = __floats2bfloat162_rn(o[4 * (i + j) + 2 * half] * scale, o[4 * (i + j) + 2 * half + 1] * scale);
        *reinterpret_cast<uint4*>(to + 8 * i) = *reinterpret_cast<const uint4*>(packed);
      }
    } else if (r < work.rows() && run.group * work.rows() + r < work.args.n * work.args.heads) {
      float* to = work.args.out + (uint64_t{run.group} * work.rows() + r) * kLatent + first + 2 * quad;
#pragma unroll
      for (int i = 0; i < Blocks; i++)
        *reinterpret_cast<float2*>(to + 8 * i) = {o[4 * i + 2 * half] * scale, o[4 * i + 2 * half + 1] * scale};
    }
  }
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The largest weight a row's accumulators may have before they are scaled down, as log2: most spans then need no scaling.
constexpr float kHeadroom = 8.0f;

#endif

// By warpgroup products on sm_90a; by mma.sync everywhere, with 64 query rows a block or with 32 where shared memory is
// small; and for latents of any width.
enum class LatentKernel { Warpgroups, Warps, NarrowWarps, Plain };
cudaError_t attend_latents_by(LatentKernel kernel, cudaStream_t stream, const LatentAttention& args);

// The parts of the above that are in files of their own.
cudaError_t run_warpgroups(cudaStream_t stream, const LatentWork& work);
cudaError_t run_warps(cudaStream_t stream, const LatentWork& work);
cudaError_t prepare_warpgroups();
cudaError_t prepare_warps();
bool wide_warps_fit();

}  // namespace perigee::cuda
