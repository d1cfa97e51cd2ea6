// Products of few tiles on Hopper: the blocks of a cluster share one tile, each with a part of k, and add up through each
// other's shared memory in the order of their ranks. So all processors read weights although there are few tiles.
#include "gemm_hopper_ring.cuh"
#include "launch.cuh"
#include "tensor_map.h"

namespace perigee::cuda {
namespace {

using hopper::kDepth, hopper::kRowBytes;

// Two blocks share a multiprocessor. Few rows leave room for more of the weights in flight.
template <uint32_t kRows>
using Shape = hopper::Shape<kRows, 128, kRows == 64 ? 4 : 3>;
// A warpgroup for each 64 rows, and a warp that copies.
template <uint32_t kRows>
constexpr uint32_t kThreads = 2 * kRows + 32;
// Sums of a block, in the ring's place: rows are 8 floats apart in their banks.
template <uint32_t kColumns>
constexpr uint32_t kSumStride = kColumns + 8;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ float4 load_remote(uint32_t shared, uint32_t rank) {
  float4 v;
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared), "r"(rank)
      : "memory");
  return v;
}
#endif

template <uint32_t kRows>
__global__ void __launch_bounds__(kThreads<kRows>, 2)
    multiply_hopper_parts(const Product p, uint32_t parts, const __grid_constant__ CUtensorMap a_map,
                          const __grid_constant__ CUtensorMap b_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace hopper;
  using S = Shape<kRows>;
  using R = Ring<S>;
  constexpr uint32_t kMostParts = 8;  // of a cluster
  constexpr uint32_t kGroups = kRows / kGroupRows, kStride = kSumStride<S::kColumns>;
  static_assert(kRows * kStride * sizeof(float) <= S::kBytes - 1024);
  using Walk = Tiles<kRows, S::kColumns, kThreads<kRows>>;
  extern __shared__ uint8_t dynamic[];
  __shared__ typename Walk::Space space;
  __shared__ Barriers<S::kStages> barriers;
  const uint32_t group = threadIdx.x / 128, rank = cluster_rank();
  if (threadIdx.x == 0) {
    R::init(barriers, 1, kGroups);
    prefetch_map(a_map);
    prefetch_map(b_map);
  }
  __syncthreads();
  wait_for_previous();

  R ring(dynamic, barriers);
  const Walk tiles(p, space);
  const Tile tile = tiles[blockIdx.x / parts];
  const uint32_t all_steps = (p.k + kDepth - 1) / kDepth;
  const uint32_t first = all_steps * rank / parts, steps = all_steps * (rank + 1) / parts - first;
  const uint32_t sums_at = ring.base();
  if (group == kGroups) {
    if (threadIdx.x % 32 == 0)
      for (uint32_t step = first; step < first + steps; step++, ring.advance()) {
        ring.wait_empty();
        expect_bytes(ring.full(), S::kStageBytes);
        copy_box(ring.a(), a_map, ring.full(), step * kDepth, tile.first, tile.group);
        copy_box(ring.b(), b_map, ring.full(), step * kDepth, tile.column, tile.group);
      }
  } else {
    const uint32_t thread = threadIdx.x % 128;
    float sums[S::kColumns / 2];
    multiply_stages<Release::AtOnce>(ring, steps, group, sums, [&](uint32_t empty) {
      if (thread == 0) arrive(empty);
    });
    asm volatile("bar.sync 1, %0;" ::"n"(kGroups * 128) : "memory");  // all are done with the ring
#pragma unroll
    for (uint32_t half = 0; half < 2; half++)
#pragma unroll
      for (uint32_t j = 0; j < S::kColumns / 8; j++) {
        const uint32_t row = group * kGroupRows + row_of(thread, half);
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(sums_at + (row * kStride + column_of(thread, j)) * 4),
                     "f"(sums[4 * j + 2 * half]), "f"(sums[4 * j + 2 * half + 1])
                     : "memory");
      }
  }
  __syncthreads();
  sync_cluster();
  let_next_start();

  const uint32_t share = (tile.rows + parts - 1) / parts, begin = share * rank, end = min(begin + share, tile.rows);
  constexpr uint32_t kQuads = S::kColumns / 4;
  for (uint32_t i = begin * kQuads + threadIdx.x; i < end * kQuads; i += kThreads<kRows>) {
    const uint32_t row = i / kQuads, column = i % kQuads * 4;
    float4 part_sum[kMostParts], sum = {0, 0, 0, 0};
#pragma unroll
    for (uint32_t part = 0; part < kMostParts; part++)
      if (part < parts) part_sum[part] = load_remote(sums_at + (row * kStride + column) * 4, part);
#pragma unroll
    for (uint32_t part = 0; part < kMostParts; part++)
      if (part < parts) {
        const float4 v = part_sum[part];
        sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
      }
    const uint64_t at = tile.group * p.y_next + uint64_t(tile.first + row) * p.y_stride;
    store_four(p, at, tile.column + column, sum);
  }
  sync_cluster();  // others may still read here
#endif
}

template <uint32_t kRows>
cudaError_t run(cudaStream_t stream, const Product& p, uint32_t parts) {
  using S = Shape<kRows>;
  CUtensorMap a_map, b_map;
  CUDA_TRY(map_rows(&a_map, p.a, p.k, p.m, p.a_stride, p.groups, p.a_next, kDepth, kRows));
  CUDA_TRY(map_rows(&b_map, p.b, p.k, p.n, p.b_stride, p.groups, p.b_next, kDepth, S::kColumns));
  const uint32_t tiles = (p.m + kRows - 1) / kRows * ((p.n + S::kColumns - 1) / S::kColumns) * p.groups;
  CUDA_TRY(launch({tiles * parts, kThreads<kRows>, S::kBytes, stream, parts}, multiply_hopper_parts<kRows>, p, parts,
                  a_map, b_map));
  return cudaSuccess;
}

}  // namespace

cudaError_t multiply_hopper_split(cudaStream_t stream, const Product& p, uint32_t parts) {
  return p.m <= 64 ? run<64>(stream, p, parts) : run<128>(stream, p, parts);
}

cudaError_t prepare_hopper_split() {
  CUDA_TRY(
      cudaFuncSetAttribute(multiply_hopper_parts<64>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape<64>::kBytes));
  CUDA_TRY(cudaFuncSetAttribute(multiply_hopper_parts<128>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                Shape<128>::kBytes));
  return cudaSuccess;
}

}  // namespace perigee::cuda
