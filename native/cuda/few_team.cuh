// Teams of warps that make 16 rows of a product together: each warp takes every width-th tile along the columns through
// a ring of tiles of its own in shared memory, and their sums are added in a fixed order. So a step's result does not
// depend on timing, and a warp always has whole tiles in flight, without a barrier in the inner loop. Activations are
// shared by the block's teams, all of them at once where they fit, else `chunk` steps at a time.
//
// A kernel is a job: units (one or more parts of 16 rows whose results belong together), the steps along each (tiles),
// what activations each step meets, and what becomes of a finished value.
#pragma once
#include "few.h"
#include "few_tile.cuh"
#include "launch.cuh"

namespace perigee::cuda {

// Most tiles that a warp has in flight or at work: 16 warps of a multiprocessor have some 100 KB under way.
template <class F>
constexpr uint32_t kStages = (6656 + F::kBytes - 1) / F::kBytes;

// Floats of one warp's sums of 16 rows; columns are set apart so that writing them meets no bank twice.
constexpr uint32_t kPartial = 8 * 20;

template <class F, int N>
CutOf cut_of(uint32_t units, uint32_t parts, uint32_t steps) {
  return {units, parts, steps, F::kBytes, F::template kMet<N>, 2 * kPartial * uint32_t(sizeof(float)), kStages<F>};
}

struct Team {
  uint32_t width, rank;  // rank: of this warp in its team
  uint32_t in_block, index;
  __device__ explicit Team(const Cut& cut) {
    const uint32_t warp = threadIdx.x / 32;
    width = cut.width, rank = warp % cut.width, in_block = warp / cut.width;
    index = blockIdx.x * cut.per_block + in_block;
  }
  __device__ uint32_t thread() const { return rank * 32 + threadIdx.x % 32; }
  __device__ void meet() const {
    if (width == 1) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(in_block + 1), "r"(width * 32) : "memory");
  }
};

// Lets a kernel have all the shared memory that a block can have beside its own.
template <typename Kernel>
cudaError_t allow_shared_memory(Kernel* kernel) {
  int device = 0, most = 0;
  CUDA_TRY(cudaGetDevice(&device));
  CUDA_TRY(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  cudaFuncAttributes has = {};
  CUDA_TRY(cudaFuncGetAttributes(&has, kernel));
  CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most - int(has.sharedSizeBytes)));
  return cudaSuccess;
}

// Job: kParts; x, cols; units, steps; source(unit, part, step, &tile); meeting(step, token); count (tokens); begin() waits
// for earlier kernels; stage<F, N>(to, first, steps); take(unit, part, token, row of 16, value); finish(unit, team) when all
// parts of a unit are taken.
template <class F, int N, class Job>
__device__ void run(Job& job, const Cut& cut, uint8_t* shared) {
  constexpr uint32_t kRing = kStages<F>;
  const Team team(cut);
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warps = blockDim.x / 32;
  uint8_t* ring = shared + threadIdx.x / 32 * (cut.stages * F::kBytes);
  uint8_t* behind_rings = shared + warps * (cut.stages * F::kBytes);
  float* partials = reinterpret_cast<float*>(behind_rings) + team.in_block * team.width * 2 * kPartial;
  uint8_t* met = behind_rings + warps * 2 * kPartial * sizeof(float);

  const uint32_t first_unit = team.index < cut.teams ? team.index : job.units;
  uint32_t next_unit = first_unit, next_part = 0, next_step = team.rank;
  const auto fetch = [&](uint32_t stage) {
    if (next_unit < job.units && next_step < job.steps) {
      uint32_t tile;
      const Source source = job.source(next_unit, next_part, next_step, &tile);
      F::fetch(ring + stage * F::kBytes, source, tile, lane);
      next_step += team.width;
      if (next_step >= job.steps) {
        next_step = team.rank;
        if (++next_part == Job::kParts) next_part = 0, next_unit += cut.teams;
      }
    }
    commit_copies();
  };
  for (uint32_t stage = 0; stage < kRing; stage++) fetch(stage);
  job.begin();
  const bool whole = cut.chunk >= job.steps;
  if (whole) {
    job.template stage<F, N>(met, 0, job.steps);
    wait_for_copies<0>();
    __syncthreads();
  }

  uint32_t stage = 0, side = 0;
  for (uint32_t before = 0; before < job.units; before += cut.teams) {
    const uint32_t unit = before + first_unit;
    const bool live = unit < job.units;
    for (uint32_t part = 0; part < Job::kParts; part++) {
      float acc[4] = {};
      for (uint32_t first = 0; first < job.steps; first += cut.chunk) {
        const uint32_t end = min(first + cut.chunk, job.steps);
        if (!whole) {
          __syncthreads();
          job.template stage<F, N>(met, first, end - first);
          wait_for_copies<0>();
          __syncthreads();
        }
        if (!live) continue;
        for (uint32_t step = first + team.rank; step < end; step += team.width) {
          wait_for_copies<kRing - 1>();
          __syncwarp();
          F::template meet<N>(ring + stage * F::kBytes, met + (step - first) * F::template kMet<N>, lane, acc);
          __syncwarp();
          fetch(stage);
          stage = stage + 1 == kRing ? 0 : stage + 1;
        }
      }
      if (!live) continue;
      float* partial = partials + (side * team.width + team.rank) * kPartial;
      for (int i = 0; i < 4; i++) partial[(2 * t + i % 2) * 20 + g + i / 2 * 8] = acc[i];
      team.meet();
      const float* all = partials + side * team.width * kPartial;
      for (uint32_t i = team.thread(); i < job.count * kTileRows; i += team.width * 32) {
        const uint32_t token = i / kTileRows, row = i % kTileRows;
        float sum = 0.0f;
        for (uint32_t warp = 0; warp < team.width; warp++)
          for (uint32_t column = token; column < 8; column += N) sum += all[warp * kPartial + column * 20 + row];
        job.take(unit, part, token, row, sum * F::kUnit);
      }
      side ^= 1;
    }
    if (live) job.finish(unit, team);
  }
}

// What jobs have in common whose tokens meet every step in order.
struct InOrder {
  Activations x;
  uint32_t units, steps, cols, count;

  __device__ Meeting meeting(uint32_t step, uint32_t token) const {
    return {token < count ? int32_t(token) : -1, step, 1.0f};
  }
  __device__ void begin() const {
    wait_for_previous();
    let_next_start();
  }
};

}  // namespace perigee::cuda
