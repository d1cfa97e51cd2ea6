// Grouped products of many rows on Hopper. Rows of `a` lie scattered: a warpgroup gathers them by cp.async into the layout
// that tensor copies would write, while those bring the weights; two warpgroups multiply.
#include "gemm_hopper_ring.cuh"
#include "launch.cuh"
#include "tensor_map.h"

namespace perigee::cuda {
namespace {

using hopper::kDepth, hopper::kRowBytes;

constexpr uint32_t kRows = 128, kColumns = 256, kThreads = 384;
using Shape = hopper::Shape<kRows, kColumns, 4>;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using Ring = hopper::Ring<Shape>;
using Walk = Tiles<kRows, kColumns, kThreads>;

// The copying warpgroup: each thread has 16-byte piece thread % 8 of every 16th row.
__device__ void fill_ring(const Product& p, const CUtensorMap& b_map, const Walk& tiles, Ring ring) {
  using namespace hopper;
  constexpr uint32_t kOwn = kRows / 16;
  const uint32_t thread = threadIdx.x % 128, piece = thread % 8;
  const uint32_t to = thread / 8 * kRowBytes + ((piece ^ (thread / 8 & 7)) << 4);
  const uint32_t steps = (p.k + kDepth - 1) / kDepth;
  for (uint32_t t = blockIdx.x; t < tiles.count(); t += gridDim.x) {
    const Tile tile = tiles[t];
    int32_t row[kOwn];  // negative: not of this tile; what its sums are made of does not matter
    for (uint32_t i = 0; i < kOwn; i++) {
      const uint32_t r = thread / 8 + i * 16;
      row[i] = r >= tile.rows ? -1 : p.row_of != nullptr ? p.row_of[tile.first + r] : int32_t(tile.first + r);
    }
    for (uint32_t step = 0; step < steps; step++, ring.advance()) {
      ring.wait_empty();
      if (thread == 0) {
        expect_bytes(ring.full(), kColumns * kRowBytes);
        copy_box(ring.b(), b_map, ring.full(), step * kDepth, tile.column, tile.group);
      }
      const uint32_t at = step * kDepth + piece * 8;
      const bool real = at < p.k;
      const bf16* from = p.a + (real ? at : 0);
#pragma unroll
      for (uint32_t i = 0; i < kOwn; i++)
        if (row[i] >= 0)
          asm volatile(
              "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(ring.a() + to + i * 16 * kRowBytes),
              "l"(from + uint64_t(row[i]) * p.a_stride), "r"(real ? 16 : 0)
              : "memory");
      arrive_with_copies(ring.full());
    }
  }
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    multiply_hopper_groups(const Product p, const __grid_constant__ CUtensorMap b_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace hopper;
  extern __shared__ uint8_t dynamic[];
  __shared__ typename Walk::Space space;
  __shared__ TurnSpace turn;
  __shared__ Barriers<Shape::kStages> barriers;
  const uint32_t group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    Ring::init(barriers, 1 + 128, 2);
    prefetch_map(b_map);
  }
  __syncthreads();
  wait_for_previous();

  Ring ring(dynamic, barriers);
  const Walk tiles(p, space);
  if (group == 0) {
    shrink_registers<56>();
    fill_ring(p, b_map, tiles, ring);
    asm volatile("cp.async.wait_all;" ::: "memory");
    let_next_start();
  } else {
    grow_registers<224>();
    const uint32_t own = group - 1, thread = threadIdx.x % 128, steps = (p.k + kDepth - 1) / kDepth;
    for (uint32_t t = blockIdx.x; t < tiles.count(); t += gridDim.x) {
      const Tile tile = tiles[t];
      float sums[kColumns / 2];
      multiply_stages<Release::Later, true>(ring, steps, own, sums, [&](uint32_t empty) {
        if (thread == 0) arrive(empty);
      });
      store_sums<kColumns>(p, tile, own * kGroupRows, thread, turn, sums);
    }
  }
#endif
}

}  // namespace

cudaError_t multiply_hopper_grouped(cudaStream_t stream, const Product& p, uint32_t processors) {
  CUtensorMap b_map;
  CUDA_TRY(map_rows(&b_map, p.b, p.k, p.n, p.b_stride, p.groups, p.b_next, kDepth, kColumns));
  CUDA_TRY(launch({processors, kThreads, Shape::kBytes, stream}, multiply_hopper_groups, p, b_map));
  return cudaSuccess;
}

cudaError_t prepare_hopper_grouped() {
  CUDA_TRY(cudaFuncSetAttribute(multiply_hopper_groups, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes));
  return cudaSuccess;
}

}  // namespace perigee::cuda
