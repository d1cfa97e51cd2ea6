// Teams of warps that make 16 rows of a product together: each warp takes every width-th tile along the columns through
// a ring of tiles of its own in shared memory, and their sums are added in a fixed order. So a step's result does not
// depend on timing, and a warp always has whole tiles in flight, without a barrier in the inner loop.
//
// A kernel is a job: units (one or more parts of 16 rows whose results belong together), the tiles along each, which
// activation rows are its columns, and what becomes of a finished value.
#pragma once
#include <algorithm>

#include "few_tile.cuh"
#include "launch.cuh"

namespace perigee::cuda {

constexpr uint32_t kMostWarps = 16, kMostTeams = 4;  // of a block
constexpr uint32_t kStaticBytes = 16384;             // most shared memory that a job has for itself
constexpr uint32_t kRingBytes = 8704;  // of a warp, about: 16 warps of a multiprocessor have over 100 KB in flight

template <class F>
constexpr uint32_t kStages = (kRingBytes + F::kBytes - 1) / F::kBytes;

// How a launch is cut: `width` warps a team, `teams` in all (of x), `per_block` of them in a block.
struct Cut {
  uint32_t width, per_block, teams;
  dim3 grid(uint32_t y = 1) const { return dim3((teams + per_block - 1) / per_block, y); }
  uint32_t warps() const { return width * per_block; }
  uint32_t threads() const { return 32 * warps(); }
};

// Warps that fill the device once, so that each team has an equal share of `units` of `steps` tiles a row of tiles.
Cut cut(uint32_t units, uint32_t steps, uint32_t bytes_a_warp);

// 8 * C columns of 16 rows, one warp's; columns are set apart so that writing them meets no bank twice.
template <int C>
constexpr uint32_t kPartial = C * 8 * 20;

template <class F, int C>
constexpr uint32_t kBytesOfWarp = kStages<F> * F::kBytes + 2 * kPartial<C> * uint32_t(sizeof(float));

struct Team {
  uint32_t width, rank;  // rank: of this warp in its team
  uint32_t in_block, index, teams;
  __device__ explicit Team(const Cut& cut) {
    const uint32_t warp = threadIdx.x / 32;
    width = cut.width, rank = warp % cut.width, in_block = warp / cut.width;
    index = blockIdx.x * cut.per_block + in_block, teams = cut.teams;
  }
  __device__ uint32_t thread() const { return rank * 32 + threadIdx.x % 32; }
  __device__ void meet() const {
    if (width == 1) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(in_block + 1), "r"(width * 32) : "memory");
  }
};

// Job: kParts; units, steps; cols of the weights; source(unit, part, step, &tile); columns<C>(step, lane); x (Activations)
// and tile(step); count (columns in use); begin() waits for earlier kernels and prepares; take(unit, part, column, row of 16, value); finish(unit, team) when all parts of a unit are taken.
template <class F, int C, class Job>
__device__ void run(Job& job, const Team& team, uint8_t* shared) {
  constexpr uint32_t kRing = kStages<F>;
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint8_t* ring = shared + threadIdx.x / 32 * (kRing * F::kBytes);
  auto* partials = reinterpret_cast<float*>(shared + blockDim.x / 32 * (kRing * F::kBytes)) +
                   team.in_block * team.width * 2 * kPartial<C>;

  uint32_t next_unit = team.index, next_part = 0, next_step = team.rank;
  const auto fetch = [&](uint32_t stage) {
    if (next_unit < job.units && next_step < job.steps) {
      uint32_t tile;
      const Source source = job.source(next_unit, next_part, next_step, &tile);
      F::fetch(ring + stage * F::kBytes, source, tile, lane);
      next_step += team.width;
      if (next_step >= job.steps) {
        next_step = team.rank;
        if (++next_part == Job::kParts) next_part = 0, next_unit += team.teams;
      }
    }
    commit_copies();
  };
  for (uint32_t stage = 0; stage < kRing; stage++) fetch(stage);
  job.begin();

  uint32_t stage = 0, side = 0;
  for (uint32_t unit = team.index; unit < job.units; unit += team.teams) {
    for (uint32_t part = 0; part < Job::kParts; part++) {
      float acc[C][4] = {};
      for (uint32_t step = team.rank; step < job.steps; step += team.width) {
        wait_for_copies<kRing - 1>();
        __syncwarp();
        F::template meet<C>(ring + stage * F::kBytes, job.tile(step), job.cols, job.x,
                            job.template columns<C>(step, lane), lane, acc);
        __syncwarp();
        fetch(stage);
        stage = stage + 1 == kRing ? 0 : stage + 1;
      }
      float* partial = partials + (side * team.width + team.rank) * kPartial<C>;
      for (int c = 0; c < C; c++)
        for (int i = 0; i < 4; i++) partial[(8 * c + 2 * t + i % 2) * 20 + g + i / 2 * 8] = acc[c][i];
      team.meet();
      const float* all = partials + side * team.width * kPartial<C>;
      for (uint32_t i = team.thread(); i < job.count * kTileRows; i += team.width * 32) {
        const uint32_t column = i / kTileRows, row = i % kTileRows;
        float sum = 0.0f;
        for (uint32_t warp = 0; warp < team.width; warp++) sum += all[warp * kPartial<C> + column * 20 + row];
        job.take(unit, part, column, row, sum * F::kUnit);
      }
      side ^= 1;
    }
    job.finish(unit, team);
  }
}

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

// All tokens of the step in order; columns beyond the last repeat it.
template <int C>
__device__ Columns<C> columns_in_order(uint32_t count, uint32_t lane) {
  Columns<C> columns;
  for (uint32_t c = 0; c < C; c++) {
    columns.of_g[c] = min(8 * c + lane / 4, count - 1);
    columns.factor_g[c] = 1.0f;
    for (uint32_t i = 0; i < 2; i++) {
      columns.of_t[c][i] = min(8 * c + lane % 4 * 2 + i, count - 1);
      columns.factor_t[c][i] = 1.0f;
    }
  }
  return columns;
}

}  // namespace perigee::cuda
