// What the products on Hopper share: a ring of stages in shared memory, and the warpgroups that multiply from it.
#pragma once
#include "gemm_hopper.cuh"
#include "gemm_tiles.cuh"

namespace perigee::cuda::hopper {

// A stage holds kDepth values of k of a tile's rows of a, then of the tile's columns of b.
constexpr uint32_t kDepth = 64, kRowBytes = kDepth * sizeof(bf16);
constexpr uint32_t kGroupRows = 64;  // of a warpgroup

template <uint32_t kTileRows, uint32_t kTileColumns, uint32_t kStageCount>
struct Shape {
  static constexpr uint32_t kRows = kTileRows, kColumns = kTileColumns, kStages = kStageCount;
  static constexpr uint32_t kStageBytes = (kRows + kColumns) * kRowBytes;
  static constexpr uint32_t kBytes = kStages * kStageBytes + 1024;  // swizzled atoms begin at multiples of 1024
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <uint32_t kStages>
struct Barriers {
  uint64_t full[kStages], empty[kStages];
};

// One side's way round the ring.
template <typename S>
class Ring {
 public:
  static constexpr uint32_t kStages = S::kStages;

  // Called by one thread; the others meet it behind a barrier.
  static __device__ void init(Barriers<kStages>& barriers, uint32_t fillers, uint32_t users) {
    for (uint32_t i = 0; i < kStages; i++) {
      init_barrier(shared_address(&barriers.full[i]), fillers);
      init_barrier(shared_address(&barriers.empty[i]), users);
    }
    fence_barriers();
  }

  __device__ Ring(const uint8_t* dynamic, Barriers<kStages>& barriers)
      : base_((shared_address(dynamic) + 1023) & ~1023u),
        full_(shared_address(barriers.full)),
        empty_(shared_address(barriers.empty)) {}

  __device__ uint32_t base() const { return base_; }
  __device__ uint32_t a() const { return base_ + stage_ * S::kStageBytes; }
  __device__ uint32_t b() const { return a() + S::kRows * kRowBytes; }
  __device__ uint32_t full() const { return full_ + stage_ * 8; }
  __device__ uint32_t empty() const { return empty_ + stage_ * 8; }
  __device__ void wait_full() const { wait_barrier(full(), parity_); }
  __device__ void wait_empty() const { wait_barrier(empty(), parity_ ^ 1); }
  __device__ void advance() {
    if (++stage_ == kStages) stage_ = 0, parity_ ^= 1;
  }
  __device__ void skip(uint32_t steps) {
    stage_ += steps;
    parity_ ^= stage_ / kStages & 1;
    stage_ %= kStages;
  }

 private:
  uint32_t base_, full_, empty_, stage_ = 0, parity_ = 0;
};

// sums = the warpgroup's rows of a . b^T over the next `steps` stages, each given back by release(its empty barrier): one
// step later, so that products follow each other without a gap, or at once, so that more copies are on their way.
enum class Release { Later, AtOnce };
// kFence: threads' own copies fill stages as well.
template <Release kRelease, bool kFence = false, typename S, typename Give>
__device__ void multiply_stages(Ring<S>& ring, uint32_t steps, uint32_t group, float (&sums)[S::kColumns / 2],
                                Give release) {
  uint32_t before = 0;
  for (uint32_t step = 0; step < steps; step++, ring.advance()) {
    ring.wait_full();
    if constexpr (kFence) fence_for_products();
    const uint64_t a = describe(ring.a() + group * kGroupRows * kRowBytes), b = describe(ring.b());
    begin_products();
#pragma unroll
    for (uint32_t i = 0; i < kDepth / 16; i++) multiply_16<S::kColumns>(sums, a + 2 * i, b + 2 * i, step + i > 0);
    commit_products();
    if constexpr (kRelease == Release::Later) {
      wait_products<1>();  // the step before is done: its stage may be filled again
      if (step > 0) release(before);
      before = ring.empty();
    } else {
      wait_products<0>();
      release(ring.empty());
    }
  }
  if constexpr (kRelease == Release::Later) {
    wait_products<0>();
    release(before);
  }
}

// Eight warps' space for store_sums; rows are 8 floats apart in their banks.
constexpr uint32_t kTurnStride = 32 + 8;
struct TurnSpace {
  alignas(16) float block[8][16][kTurnStride];
};

// Where sums[4 j + 2 half], sums[4 j + 2 half + 1] of a thread of a warpgroup belong.
__device__ inline uint32_t row_of(uint32_t thread, uint32_t half) {
  return thread / 32 * 16 + thread % 32 / 4 + half * 8;
}
__device__ inline uint32_t column_of(uint32_t thread, uint32_t j) { return j * 8 + thread % 4 * 2; }

// Stores a warpgroup's rows, the first of which is row `first` of the tile. Each warp turns 16 x 32 values at a time over
// through its part of `turn`: as the products leave them, a store would touch eight lines for a quarter of each.
template <uint32_t kColumns>
__device__ void store_sums(const Product& p, const Tile& tile, uint32_t first, uint32_t thread, TurnSpace& turn,
                           const float (&sums)[kColumns / 2]) {
  const uint32_t lane = thread % 32;
  float(&block)[16][kTurnStride] = turn.block[threadIdx.x / 32 % 8];
  const uint32_t row = first + thread / 32 * 16;
  const uint64_t origin = tile.group * p.y_next + uint64_t(tile.first + row) * p.y_stride;
#pragma unroll
  for (uint32_t part = 0; part < kColumns / 32; part++) {
#pragma unroll
    for (uint32_t j = 0; j < 4; j++)
#pragma unroll
      for (uint32_t half = 0; half < 2; half++)
        *reinterpret_cast<float2*>(&block[lane / 4 + half * 8][j * 8 + lane % 4 * 2]) = {
            sums[16 * part + 4 * j + 2 * half], sums[16 * part + 4 * j + 2 * half + 1]};
    __syncwarp();
    const uint32_t column = tile.column + part * 32;
    if (p.y_wide != nullptr) {
#pragma unroll
      for (uint32_t i = lane / 4; i < 16; i += 8) {
        const float4* v = reinterpret_cast<const float4*>(&block[i][lane % 4 * 8]);
        if (row + i < tile.rows)
          store_eight_wide(p, origin + uint64_t(i) * p.y_stride, column + lane % 4 * 8, v[0], v[1]);
      }
    } else {
#pragma unroll
      for (uint32_t i = lane / 8; i < 16; i += 4)
        if (row + i < tile.rows)
          store_four(p, origin + uint64_t(i) * p.y_stride, column + lane % 8 * 4,
                     *reinterpret_cast<const float4*>(&block[i][lane % 8 * 4]));
    }
    __syncwarp();
  }
}

#endif

}  // namespace perigee::cuda::hopper
