// Dense products on Hopper where results are large beside k: two warpgroups take tiles in turns, so that one stores its
// results while the other multiplies. Clusters of two blocks share columns as in gemm_hopper.cu.
#include "gemm_hopper_ring.cuh"
#include "launch.cuh"
#include "tensor_map.h"

namespace perigee::cuda {
namespace {

using hopper::kDepth, hopper::kRowBytes;

constexpr uint32_t kCluster = 2, kRows = 128, kColumns = 128;
constexpr uint32_t kThreads = 384;  // a warpgroup that copies, two that multiply
using Shape = hopper::Shape<kRows, kColumns, 6>;

__global__ void __launch_bounds__(kThreads, 1)
    multiply_hopper_in_turns(const Product p, const __grid_constant__ CUtensorMap a_map,
                             const __grid_constant__ CUtensorMap b_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace hopper;
  using Walk = Tiles<kRows * kCluster, kColumns, kThreads>;
  extern __shared__ uint8_t dynamic[];
  __shared__ typename Walk::Space space;
  __shared__ TurnSpace turn;
  __shared__ Barriers<Shape::kStages> barriers;
  const uint32_t group = threadIdx.x / 128, rank = cluster_rank();
  if (threadIdx.x == 0) {
    Ring<Shape>::init(barriers, 1, kCluster);
    prefetch_map(a_map);
    prefetch_map(b_map);
  }
  sync_cluster();
  wait_for_previous();

  Ring<Shape> ring(dynamic, barriers);
  const Walk tiles(p, space);
  const uint32_t steps = (p.k + kDepth - 1) / kDepth, clusters = gridDim.x / kCluster;
  if (group == 0) {
    shrink_registers<40>();
    if (threadIdx.x == 0) {
      for (uint32_t t = blockIdx.x / kCluster; t < tiles.count(); t += clusters) {
        const Tile tile = tiles[t];
        constexpr uint32_t kShare = kColumns / kCluster;
        for (uint32_t step = 0; step < steps; step++, ring.advance()) {
          ring.wait_empty();
          expect_bytes(ring.full(), Shape::kStageBytes);
          copy_box(ring.a(), a_map, ring.full(), step * kDepth, tile.first + rank * kRows, tile.group);
          copy_box_to_all(ring.b() + rank * kShare * kRowBytes, b_map, ring.full(), step * kDepth,
                          tile.column + rank * kShare, tile.group, (1 << kCluster) - 1);
        }
      }
      let_next_start();
    }
  } else {
    grow_registers<232>();
    const uint32_t own = group - 1, thread = threadIdx.x % 128;
    const auto release = [&](uint32_t empty) {
      if (thread < kCluster) arrive_at(empty, thread);
    };
    // A warpgroup may look at the ring only when the other has seen all of its own stages full: from further behind it
    // would take an earlier filling for its own. Barrier 1 + g: it is warpgroup g's turn.
    if (own == 1) ring.skip(steps);
    for (uint32_t t = blockIdx.x / kCluster + own * clusters; t < tiles.count(); t += 2 * clusters, ring.skip(steps)) {
      const Tile tile = tiles[t];
      if (t >= clusters) asm volatile("bar.sync %0, 256;" ::"r"(1 + own) : "memory");
      float upper[kColumns / 2], lower[kColumns / 2];
      uint32_t before = 0;
      for (uint32_t step = 0; step < steps; step++, ring.advance()) {
        ring.wait_full();
        const uint64_t a = describe(ring.a()), a_lower = describe(ring.a() + kGroupRows * kRowBytes),
                       b = describe(ring.b());
        begin_products();
#pragma unroll
        for (uint32_t i = 0; i < kDepth / 16; i++) {
          multiply_16<kColumns>(upper, a + 2 * i, b + 2 * i, step + i > 0);
          multiply_16<kColumns>(lower, a_lower + 2 * i, b + 2 * i, step + i > 0);
        }
        commit_products();
        wait_products<1>();
        if (step > 0) release(before);
        before = ring.empty();
      }
      if (t + clusters < tiles.count()) asm volatile("bar.arrive %0, 256;" ::"r"(2 - own) : "memory");
      wait_products<0>();
      release(before);
      store_sums<kColumns>(p, tile, rank * kRows, thread, turn, upper);
      store_sums<kColumns>(p, tile, rank * kRows + kGroupRows, thread, turn, lower);
    }
  }
  sync_cluster();  // the neighbour may still arrive here
#endif
}

}  // namespace

cudaError_t multiply_hopper_turns(cudaStream_t stream, const Product& p, uint32_t processors) {
  CUtensorMap a_map, b_map;
  CUDA_TRY(map_rows(&a_map, p.a, p.k, p.m, p.a_stride, p.groups, p.a_next, kDepth, kRows));
  CUDA_TRY(map_rows(&b_map, p.b, p.k, p.n, p.b_stride, p.groups, p.b_next, kDepth, kColumns / kCluster));
  const uint64_t row_tiles = (p.m + kCluster * kRows - 1) / (kCluster * kRows);
  const uint64_t tiles = row_tiles * ((p.n + kColumns - 1) / kColumns) * p.groups, clusters = processors / kCluster;
  const uint32_t grid = static_cast<uint32_t>(tiles < clusters ? tiles : clusters) * kCluster;
  CUDA_TRY(launch({grid, kThreads, Shape::kBytes, stream, kCluster}, multiply_hopper_in_turns, p, a_map, b_map));
  return cudaSuccess;
}

cudaError_t prepare_hopper_turns() {
  CUDA_TRY(cudaFuncSetAttribute(multiply_hopper_in_turns, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes));
  return cudaSuccess;
}

}  // namespace perigee::cuda
