// Large dense products on Hopper: tensor copies feed a ring of stages, two warpgroups multiply from there.
//
// Two blocks of a cluster have neighbouring tiles of rows and the same columns: each fetches its rows of `a` and half of
// the rows of `b` for both. Blocks stay and walk over tiles. With tiles of 192 or 256 columns each warpgroup has half of a
// tile's rows: while one stores, the other and the copies go on as far as the ring reaches. Tiles of 128 columns they take
// in turns, so that one stores its results while the other multiplies.
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
constexpr bool kInTurns = kColumns == 128;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <uint32_t kColumns>
using Walk = Tiles<kRows * kCluster, kColumns, kThreads>;

__device__ uint32_t first_tile() { return blockIdx.x / kCluster; }
__device__ uint32_t clusters() { return gridDim.x / kCluster; }

// One thread fills all stages of all tiles.
template <uint32_t kColumns>
__device__ void fill_ring(const CUtensorMap& a_map, const CUtensorMap& b_map, const Walk<kColumns>& tiles,
                          hopper::Ring<Shape<kColumns>> ring, uint32_t steps, uint32_t rank) {
  using namespace hopper;
  constexpr uint32_t kShare = kColumns / kCluster;
  for (uint32_t t = first_tile(); t < tiles.count(); t += clusters()) {
    const Tile tile = tiles[t];
    for (uint32_t step = 0; step < steps; step++, ring.advance()) {
      ring.wait_empty();
      expect_bytes(ring.full(), Shape<kColumns>::kStageBytes);
      copy_box(ring.a(), a_map, ring.full(), step * kDepth, tile.first + rank * kRows, tile.group);
      copy_box_to_all(ring.b() + rank * kShare * kRowBytes, b_map, ring.full(), step * kDepth,
                      tile.column + rank * kShare, tile.group, (1 << kCluster) - 1);
    }
  }
}

// Gives a stage back to both blocks.
__device__ void release(uint32_t empty) {
  if (threadIdx.x % 128 < kCluster) hopper::arrive_at(empty, threadIdx.x % 128);
}

template <uint32_t kColumns>
__device__ void multiply_halves(const Product& p, const Walk<kColumns>& tiles, hopper::Ring<Shape<kColumns>> ring,
                                uint32_t steps, uint32_t rank, hopper::TurnSpace& turn) {
  using namespace hopper;
  const uint32_t own = threadIdx.x / 128 - 1;
  for (uint32_t t = first_tile(); t < tiles.count(); t += clusters()) {
    const Tile tile = tiles[t];
    float sums[kColumns / 2];
    multiply_stages<Release::Later>(ring, steps, own, sums, release);
    store_sums<kColumns>(p, tile, rank * kRows + own * kGroupRows, threadIdx.x % 128, turn, sums);
  }
}

template <uint32_t kColumns>
__device__ void multiply_in_turns(const Product& p, const Walk<kColumns>& tiles, hopper::Ring<Shape<kColumns>> ring,
                                  uint32_t steps, uint32_t rank, hopper::TurnSpace& turn) {
  using namespace hopper;
  const uint32_t own = threadIdx.x / 128 - 1, thread = threadIdx.x % 128;
  // A warpgroup may look at the ring only when the other has seen all of its own stages full: from further behind it
  // would take an earlier filling for its own. Barrier 1 + g: it is warpgroup g's turn.
  if (own == 1) ring.skip(steps);
  for (uint32_t t = first_tile() + own * clusters(); t < tiles.count(); t += 2 * clusters(), ring.skip(steps)) {
    const Tile tile = tiles[t];
    if (t >= clusters()) asm volatile("bar.sync %0, 256;" ::"r"(1 + own) : "memory");
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
    if (t + clusters() < tiles.count()) asm volatile("bar.arrive %0, 256;" ::"r"(2 - own) : "memory");
    wait_products<0>();
    release(before);
    store_sums<kColumns>(p, tile, rank * kRows, thread, turn, upper);
    store_sums<kColumns>(p, tile, rank * kRows + kGroupRows, thread, turn, lower);
  }
}

#endif

template <uint32_t kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    multiply_hopper_tiles(const Product p, const __grid_constant__ CUtensorMap a_map,
                          const __grid_constant__ CUtensorMap b_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace hopper;
  using S = Shape<kColumns>;
  extern __shared__ uint8_t dynamic[];
  __shared__ typename Walk<kColumns>::Space space;
  __shared__ TurnSpace turn;
  __shared__ Barriers<S::kStages> barriers;
  const uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) {
    Ring<S>::init(barriers, 1, kInTurns<kColumns> ? kCluster : 2 * kCluster);
    prefetch_map(a_map);
    prefetch_map(b_map);
  }
  sync_cluster();
  wait_for_previous();

  const Ring<S> ring(dynamic, barriers);
  const Walk<kColumns> tiles(p, space);
  const uint32_t steps = (p.k + kDepth - 1) / kDepth;
  if (threadIdx.x < 128) {
    shrink_registers<40>();
    if (threadIdx.x == 0) {
      fill_ring<kColumns>(a_map, b_map, tiles, ring, steps, rank);
      let_next_start();
    }
  } else {
    grow_registers<232>();
    if constexpr (kInTurns<kColumns>) multiply_in_turns<kColumns>(p, tiles, ring, steps, rank, turn);
    else multiply_halves<kColumns>(p, tiles, ring, steps, rank, turn);
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
  if (tile_columns == 128) return run<128>(stream, p, processors);
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
  CUDA_TRY(raise_shared<128>());
  CUDA_TRY(raise_shared<192>());
  CUDA_TRY(raise_shared<256>());
  CUDA_TRY(prepare_hopper_split());
  CUDA_TRY(prepare_hopper_grouped());
  *usable = true;
  return cudaSuccess;
}

}  // namespace perigee::cuda
