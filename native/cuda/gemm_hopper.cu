// Large dense products on Hopper: tensor copies feed a ring of stages, two warpgroups multiply 64 rows each from there.
//
// Two blocks of a cluster have neighbouring tiles of rows and the same columns: each fetches its rows of `a` and half of
// the rows of `b` for both. Blocks stay and walk over tiles; while one warpgroup stores, the other and the copies go on
// as far as the ring reaches.
#include "gemm_hopper_ring.cuh"
#include "launch.cuh"
#include "tensor_map.h"

namespace perigee::cuda {
namespace {

using hopper::kDepth, hopper::kRowBytes;

constexpr uint32_t kCluster = 2, kRows = 128;
constexpr uint32_t kThreads = 384;  // a warpgroup that copies, two that multiply

template <uint32_t kColumns>
using Shape = hopper::Shape<kRows, kColumns,
                            kColumns == 256   ? 4
                            : kColumns == 192 ? 5
                                              : 6>;

template <uint32_t kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    multiply_hopper_tiles(const Product p, const __grid_constant__ CUtensorMap a_map,
                          const __grid_constant__ CUtensorMap b_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace hopper;
  using S = Shape<kColumns>;
  using R = Ring<S>;
  using Walk = Tiles<kRows * kCluster, kColumns, kThreads>;
  extern __shared__ uint8_t dynamic[];
  __shared__ typename Walk::Space space;
  __shared__ TurnSpace turn;
  __shared__ Barriers<S::kStages> barriers;
  const uint32_t group = threadIdx.x / 128, rank = cluster_rank();
  if (threadIdx.x == 0) {
    R::init(barriers, 1, 2 * kCluster);
    prefetch_map(a_map);
    prefetch_map(b_map);
  }
  sync_cluster();
  wait_for_previous();

  R ring(dynamic, barriers);
  const Walk tiles(p, space);
  const uint32_t steps = (p.k + kDepth - 1) / kDepth;
  if (group == 0) {
    shrink_registers<40>();
    if (threadIdx.x == 0) {
      for (uint32_t t = blockIdx.x / kCluster; t < tiles.count(); t += gridDim.x / kCluster) {
        const Tile tile = tiles[t];
        constexpr uint32_t kShare = kColumns / kCluster;
        for (uint32_t step = 0; step < steps; step++, ring.advance()) {
          ring.wait_empty();
          expect_bytes(ring.full(), S::kStageBytes);
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
    for (uint32_t t = blockIdx.x / kCluster; t < tiles.count(); t += gridDim.x / kCluster) {
      const Tile tile = tiles[t];
      float sums[kColumns / 2];
      multiply_stages<Release::Later>(ring, steps, own, sums, [&](uint32_t empty) {
        if (thread < kCluster) arrive_at(empty, thread);
      });
      store_sums<kColumns>(p, tile, rank * kRows + own * kGroupRows, thread, turn, sums);
    }
  }
  sync_cluster();  // the neighbour may still arrive here
#endif
}

template <uint32_t kColumns>
cudaError_t run(cudaStream_t stream, const Product& p, uint32_t processors) {
  CUtensorMap a_map, b_map;
  CUDA_TRY(map_rows(&a_map, p.a, p.k, p.m, p.a_stride, p.groups, p.a_next, kDepth, kRows));
  CUDA_TRY(map_rows(&b_map, p.b, p.k, p.n, p.b_stride, p.groups, p.b_next, kDepth, kColumns / kCluster));
  const uint64_t row_tiles = (p.m + kCluster * kRows - 1) / (kCluster * kRows);
  const uint64_t tiles = row_tiles * ((p.n + kColumns - 1) / kColumns) * p.groups, clusters = processors / kCluster;
  const uint32_t grid = static_cast<uint32_t>(tiles < clusters ? tiles : clusters) * kCluster;
  CUDA_TRY(launch({grid, kThreads, Shape<kColumns>::kBytes, stream, kCluster}, multiply_hopper_tiles<kColumns>, p,
                  a_map, b_map));
  return cudaSuccess;
}

template <uint32_t kColumns>
cudaError_t raise_shared() {
  CUDA_TRY(cudaFuncSetAttribute(multiply_hopper_tiles<kColumns>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                Shape<kColumns>::kBytes));
  return cudaSuccess;
}

}  // namespace

cudaError_t multiply_hopper(cudaStream_t stream, const Product& p, uint32_t tile_columns, uint32_t processors) {
  return tile_columns == 192 ? run<192>(stream, p, processors) : run<256>(stream, p, processors);
}

cudaError_t prepare_hopper(bool* usable) {
  int device, major;
  CUDA_TRY(cudaGetDevice(&device));
  CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  *usable = false;
  if (major != 9) return cudaSuccess;
  // Built for other devices only, what runs here comes from portable code, in which these kernels are empty.
  cudaFuncAttributes attributes;
  CUDA_TRY(cudaFuncGetAttributes(&attributes, multiply_hopper_tiles<256>));
  if (attributes.ptxVersion < 90) return cudaSuccess;
  CUDA_TRY(raise_shared<192>());
  CUDA_TRY(raise_shared<256>());
  CUDA_TRY(prepare_hopper_split());
  CUDA_TRY(prepare_hopper_turns());
  CUDA_TRY(prepare_hopper_grouped());
  *usable = true;
  return cudaSuccess;
}

}  // namespace perigee::cuda
