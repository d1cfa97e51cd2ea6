// Tiles of 16..128 rows x 128 columns by mma.sync, operands through a ring of cp.async stages: runs from sm_80 on.
//
// A stage holds 64 values of k of the tile's rows of both operands: 128 bytes a row, in which 16-byte piece c of row r lies
// at c ^ (r & 7). So the eight rows that an ldmatrix reads at one c lie in different banks.
#include "gemm_tiles.cuh"
#include "launch.cuh"
#include "mma.cuh"

namespace perigee::cuda {
namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32;
constexpr uint32_t kTileColumns = 128;
constexpr uint32_t kDepth = 64, kRowBytes = kDepth * sizeof(bf16);

// Stages such that a block fits the 99 KiB of consumer devices; two blocks share a multiprocessor of larger ones.
template <uint32_t kRows>
struct Shape {
  static constexpr uint32_t kWarpsDown = kRows >= 64 ? 2 : 1, kWarpsAcross = kWarps / kWarpsDown;
  static constexpr uint32_t kWarpRows = kRows / kWarpsDown, kWarpColumns = kTileColumns / kWarpsAcross;
  static constexpr uint32_t kStages = kRows == 128 ? 3 : 4;
  static constexpr uint32_t kStageBytes = (kRows + kTileColumns) * kRowBytes;
};

__device__ void copy_16(uint32_t to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0));
}

__device__ void load_matrices(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from));
}

// `kRows` rows of an operand on their way into a stage: each thread has one 16-byte piece of every 32nd row.
template <uint32_t kRows>
struct Loader {
  static constexpr uint32_t kOwn = (kRows + 31) / 32;
  const bf16* row[kOwn];  // null: zeros
  uint32_t piece, to;

  __device__ Loader() : piece(threadIdx.x % 8) {
    const uint32_t r = threadIdx.x / 8;
    to = r * kRowBytes + ((piece ^ (r & 7)) << 4);
  }

  // row_at(r): address of the tile's row r, or null.
  template <typename RowAt>
  __device__ void point(RowAt row_at) {
    for (uint32_t i = 0; i < kOwn; i++) row[i] = row_at(threadIdx.x / 8 + 32 * i);
  }

  __device__ void load(uint32_t stage, uint32_t k_begin, uint32_t k, const bf16* anywhere) const {
    const uint32_t at = k_begin + piece * 8;
    if (kRows < 32 && threadIdx.x / 8 >= kRows) return;
    for (uint32_t i = 0; i < kOwn; i++) {
      const bool real = row[i] != nullptr && at < k;
      copy_16(stage + to + i * 32 * kRowBytes, real ? row[i] + at : anywhere, real);
    }
  }
};

template <uint32_t kRows>
__global__ void __launch_bounds__(kThreads, 2) multiply_tiles(const Product p) {
  using S = Shape<kRows>;
  constexpr uint32_t kDown = S::kWarpRows / 16, kAcross = S::kWarpColumns / 8;
  using Walk = Tiles<kRows, kTileColumns, kThreads>;
  extern __shared__ __align__(128) uint8_t stages[];
  __shared__ typename Walk::Space space;
  wait_for_previous();

  const Walk tiles(p, space);
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t warp_row = warp / S::kWarpsAcross * S::kWarpRows,
                 warp_column = warp % S::kWarpsAcross * S::kWarpColumns;
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(stages));
  const uint32_t steps = (p.k + kDepth - 1) / kDepth;
  // ldmatrix: lane l names the row l % 8 of matrix l / 8. For a: two matrices down, then two across k; for b the reverse.
  const uint32_t a_at = (warp_row + lane % 16) * kRowBytes, a_piece = lane / 16;
  const uint32_t b_at = (kRows + warp_column + lane / 16 * 8 + lane % 8) * kRowBytes, b_piece = lane / 8 % 2;

  Loader<kRows> a;
  Loader<kTileColumns> b;
  for (uint32_t t = blockIdx.x; t < tiles.count(); t += gridDim.x) {
    const Tile tile = tiles[t];
    a.point([&](uint32_t r) -> const bf16* {
      if (r >= tile.rows) return nullptr;
      const uint32_t row = p.row_of != nullptr ? p.row_of[tile.first + r] : tile.first + r;
      return p.a + tile.group * p.a_next + uint64_t(row) * p.a_stride;
    });
    b.point([&](uint32_t r) -> const bf16* {
      if (tile.column + r >= p.n) return nullptr;
      return p.b + tile.group * p.b_next + uint64_t(tile.column + r) * p.b_stride;
    });
    const auto fetch = [&](uint32_t step) {
      if (step < steps) {
        const uint32_t stage = ring + step % S::kStages * S::kStageBytes;
        a.load(stage, step * kDepth, p.k, p.a);
        b.load(stage + kRows * kRowBytes, step * kDepth, p.k, p.b);
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
    };

    __syncthreads();  // the ring may still be read for the tile before
    for (uint32_t i = 0; i < S::kStages - 1; i++) fetch(i);
    float sums[kDown][kAcross][4] = {};
    for (uint32_t step = 0; step < steps; step++) {
      asm volatile("cp.async.wait_group %0;" ::"n"(S::kStages - 2) : "memory");
      __syncthreads();  // this step has arrived for all, and all are done with the stage that the next fetch fills
      fetch(step + S::kStages - 1);
      const uint32_t stage = ring + step % S::kStages * S::kStageBytes;
#pragma unroll
      for (uint32_t i = 0; i < kDepth / 16; i++) {
        uint32_t a_part[kDown][4], b_part[kAcross / 2][4];
#pragma unroll
        for (uint32_t r = 0; r < kDown; r++)
          load_matrices(a_part[r], stage + a_at + r * 16 * kRowBytes + ((2 * i + a_piece) ^ (lane & 7)) * 16);
#pragma unroll
        for (uint32_t c = 0; c < kAcross / 2; c++)
          load_matrices(b_part[c], stage + b_at + c * 16 * kRowBytes + ((2 * i + b_piece) ^ (lane & 7)) * 16);
#pragma unroll
        for (uint32_t r = 0; r < kDown; r++)
#pragma unroll
          for (uint32_t c = 0; c < kAcross; c++)
            multiply_add(sums[r][c], a_part[r], b_part[c / 2][c % 2 * 2], b_part[c / 2][c % 2 * 2 + 1]);
      }
    }
    if (t + gridDim.x >= tiles.count()) let_next_start();

#pragma unroll
    for (uint32_t r = 0; r < kDown; r++)
#pragma unroll
      for (uint32_t half = 0; half < 2; half++) {
        const uint32_t row = warp_row + r * 16 + half * 8 + lane / 4;
        if (row >= tile.rows) continue;
        const uint64_t at = tile.group * p.y_next + uint64_t(tile.first + row) * p.y_stride;
#pragma unroll
        for (uint32_t c = 0; c < kAcross; c++)
          store_pair(p, at, tile.column + warp_column + c * 8 + lane % 4 * 2, sums[r][c][2 * half],
                     sums[r][c][2 * half + 1]);
      }
  }
}

template <uint32_t kRows>
cudaError_t run(cudaStream_t stream, const Product& p, uint32_t processors) {
  // Groups' sizes are known on the device only: at most one tile each is not full.
  const uint64_t row_tiles =
      p.begin == nullptr ? uint64_t((p.m + kRows - 1) / kRows) * p.groups : p.m / kRows + p.groups;
  const uint64_t most = row_tiles * ((p.n + kTileColumns - 1) / kTileColumns);
  const uint32_t grid = static_cast<uint32_t>(most < 2 * processors ? most : 2 * processors);
  const size_t bytes = Shape<kRows>::kStages * Shape<kRows>::kStageBytes;
  CUDA_TRY(launch({grid, kThreads, bytes, stream}, multiply_tiles<kRows>, p));
  return cudaSuccess;
}

template <uint32_t kRows>
cudaError_t raise_shared() {
  CUDA_TRY(cudaFuncSetAttribute(multiply_tiles<kRows>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                Shape<kRows>::kStages * Shape<kRows>::kStageBytes));
  return cudaSuccess;
}

}  // namespace

cudaError_t multiply_portable(cudaStream_t stream, const Product& p, uint32_t tile_rows, uint32_t processors) {
  switch (tile_rows) {
    case 16:
      return run<16>(stream, p, processors);
    case 32:
      return run<32>(stream, p, processors);
    case 64:
      return run<64>(stream, p, processors);
    default:
      return run<128>(stream, p, processors);
  }
}

cudaError_t prepare_portable() {
  CUDA_TRY(raise_shared<16>());
  CUDA_TRY(raise_shared<32>());
  CUDA_TRY(raise_shared<64>());
  CUDA_TRY(raise_shared<128>());
  return cudaSuccess;
}

}  // namespace perigee::cuda
