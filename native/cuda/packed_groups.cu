// Grouped products that read each packed weight once and make bf16 of it in registers. A warp has two tiles of 16 rows (one
// of gate and one of up, or two neighbours), which are the left operand; up to 32 tokens of an expert are the right one, in
// shared memory for all warps of a block. A stage of the ring holds what a block meets at a time: a tile's columns of the
// tokens, and two tiles for each warp.
#include "few_tile.cuh"
#include "gemm_tiles.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "packed_groups.h"

namespace perigee::cuda {
namespace {

constexpr uint32_t kTokens = 32, kStages = 2;

struct Weights {
  const uint8_t* packed[2];  // tiles' first: of gate and up, or of the same matrix
  uint64_t stride[2];        // from expert to expert
  uint32_t rows, cols;
  bool paired;
  // Which rows of 16 are tile m of a pair.
  __device__ uint32_t row_tile(uint32_t pair, uint32_t m) const { return paired ? pair : 2 * pair + m; }
};

template <class T, uint32_t kWarpsOf>
struct Shape {
  static constexpr uint32_t kWarps = kWarpsOf, kThreads = 32 * kWarps;
  static constexpr uint32_t kPieces = T::kCols / 8;  // of 16 bytes, of a token
  static constexpr uint32_t kOwn = kTokens * kPieces / kThreads;
  // Neighbouring tokens lie in different banks for the reads of `meet`, of 16 or of 8 bytes a lane.
  static constexpr uint32_t kTokenBytes = T::kCols * sizeof(bf16) + (T::kHalves ? 32 : 64);
  static constexpr uint32_t kTokensAt = 2 * kWarps * T::kBytes, kStageBytes = kTokensAt + kTokens * kTokenBytes;
  static constexpr uint32_t kBytes = kStages * kStageBytes;
};

// Fills stage after stage with the tiles that the block meets, product tile after product tile.
template <class T, class S, class Walk>
class Feed {
 public:
  __device__ Feed(const Product& p, const Weights& w, const Walk& tiles)
      : p_(p), w_(w), tiles_(tiles), steps_((w.cols + T::kCols - 1) / T::kCols), next_(blockIdx.x) {}

  __device__ void fill(uint8_t* stage) {
    if (step_ == 0 && next_ < tiles_.count()) point();
    if (here_) {
      const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
      for (uint32_t m = 0; m < 2; m++) {
        if (!tile_[m]) continue;
        uint8_t* to = stage + (2 * warp + m) * T::kBytes + lane * 16;
        const uint8_t* from = tile_[m] + uint64_t(step_) * T::kBytes + lane * 16;
#pragma unroll
        for (uint32_t at = 0; at < T::kBytes; at += 512)
          if (at + 512 <= T::kBytes || at + lane * 16 < T::kBytes) copy_async(to + at, from + at);
      }
      const uint32_t piece = threadIdx.x % S::kPieces, column = step_ * T::kCols + piece * 8;
      const bool real = column < w_.cols;
#pragma unroll
      for (uint32_t i = 0; i < S::kOwn; i++) {
        const uint32_t token = threadIdx.x / S::kPieces + i * (S::kThreads / S::kPieces);
        if (row_[i] >= 0)
          copy_async(stage + S::kTokensAt + token * S::kTokenBytes + piece * 16,
                     reinterpret_cast<const uint8_t*>(p_.a + uint64_t(row_[i]) * p_.a_stride + (real ? column : 0)),
                     real);
      }
      if (++step_ == steps_) step_ = 0, next_ += gridDim.x, here_ = false;
    }
    commit_copies();
  }

 private:
  __device__ void point() {
    const Tile tile = tiles_[next_];
    const uint32_t pair = tile.column / kTileRows + threadIdx.x / 32;
    for (uint32_t m = 0; m < 2; m++) {
      const uint32_t row_tile = w_.row_tile(pair, m);
      tile_[m] = row_tile * kTileRows >= w_.rows
                     ? nullptr
                     : w_.packed[m] + tile.group * w_.stride[m] + uint64_t(row_tile) * steps_ * T::kBytes;
    }
    for (uint32_t i = 0; i < S::kOwn; i++) {
      const uint32_t token = threadIdx.x / S::kPieces + i * (S::kThreads / S::kPieces);
      row_[i] = token >= tile.rows     ? -1
                : p_.row_of != nullptr ? p_.row_of[tile.first + token]
                                       : int32_t(tile.first + token);
    }
    here_ = true;
  }

  const Product& p_;
  const Weights& w_;
  const Walk& tiles_;
  uint32_t steps_, next_, step_ = 0;
  bool here_ = false;
  const uint8_t* tile_[2] = {};
  int32_t row_[S::kOwn];
};

// Four codes of a word are scale * code - min, as two pairs of bf16. A code becomes the float 2^15 + code by one permutation, and
// one fused product takes the 2^15 away again: what that rounds is far below what bf16 rounds.
template <class T>
struct Widener {
  static constexpr bool kSigned = T::kScales != Scales::K4;
  float scale, offset;
  __device__ Widener(const RowScales<T>& of, int row, int s, int half) : scale(T::kUnit * of.scale(row, s, half)) {
    offset = -fmaf(scale, 0x1p15f + (kSigned ? 128.0f : 0.0f), of.min(row, s, half));
  }
  __device__ void widen(uint32_t word, uint32_t& first, uint32_t& second) const {
    if (kSigned) word ^= 0x80808080;
    first = pair(word, 0), second = pair(word, 2);
  }
  __device__ uint32_t pair(uint32_t word, uint32_t b) const {
    const __nv_bfloat162 both = __floats2bfloat162_rn(value(word, b), value(word, b + 1));
    return reinterpret_cast<const uint32_t&>(both);
  }
  __device__ float value(uint32_t word, uint32_t b) const {
    return fmaf(scale, __uint_as_float(__byte_perm(word, 0x47000000, 0x7404 + (b << 4))), offset);
  }
};

// sums[m][j] += the warp's tile m meets tokens 8 j .. 8 j + 7. The 16 values of k of a product are columns in the order in
// which a lane holds them (matrix_format.cuh): the same of weights and tokens.
template <class T>
__device__ void meet(const uint8_t* tiles, const uint8_t* tokens, uint32_t token_bytes, uint32_t count,
                     float (&sums)[2][kTokens / 8][4]) {
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const RowScales<T> scales[2] = {{tiles, g}, {tiles + T::kBytes, g}};
  const uint8_t* own = tokens + g * token_bytes + t * (T::kHalves ? 8 : 16);
#pragma unroll
  for (int s = 0; s < T::kGroups; s++) {
    uint32_t a[2][2][4];  // of tile m: two products of 16 columns
#pragma unroll
    for (int m = 0; m < 2; m++) {
      uint32_t words[4];
      read_codes<T>(tiles + m * T::kBytes, lane, s, words);
#pragma unroll
      for (int r = 0; r < 4; r++)
        Widener<T>(scales[m], r % 2, s, r / 2).widen(words[r], a[m][r / 2][r % 2], a[m][r / 2][2 + r % 2]);
    }
#pragma unroll
    for (uint32_t j = 0; j < kTokens / 8; j++) {
      if (8 * j >= count) break;
      const uint8_t* at = own + 8 * j * token_bytes + s * 64;
      uint4 b;
      if constexpr (T::kHalves) {
        const uint2 low = *reinterpret_cast<const uint2*>(at), high = *reinterpret_cast<const uint2*>(at + 32);
        b = {low.x, low.y, high.x, high.y};
      } else {
        b = *reinterpret_cast<const uint4*>(at);
      }
#pragma unroll
      for (int m = 0; m < 2; m++) {
        multiply_add(sums[m][j], a[m][0], b.x, b.y);
        multiply_add(sums[m][j], a[m][1], b.z, b.w);
      }
    }
  }
}

// The sums of tokens 2 t and 2 t + 1 of every eight, rows g and g + 8.
__device__ void store(const Product& p, const Weights& w, const Tile& tile, uint32_t pair,
                      const float (&sums)[2][kTokens / 8][4]) {
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (uint32_t j = 0; j < kTokens / 8; j++) {
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t token = 8 * j + 2 * t + i % 2, row = g + i / 2 * 8;
      if (token >= tile.rows) continue;
      bf16* y = p.y_wide + uint64_t(tile.first + token) * w.rows;
      if (w.paired) {
        const float gate = sums[0][j][i], value = gate / (1.0f + expf(-gate)) * sums[1][j][i];
        if (pair * kTileRows + row < w.rows) y[pair * kTileRows + row] = __float2bfloat16(value);
        continue;
      }
#pragma unroll
      for (uint32_t m = 0; m < 2; m++) {
        const uint32_t at = (2 * pair + m) * kTileRows + row;
        if (at < w.rows) y[at] = __float2bfloat16(sums[m][j][i]);
      }
    }
  }
}

template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, 2) multiply_packed(const Product p, const Weights w) {
  using Walk = Tiles<kTokens, kTileRows * S::kWarps, S::kThreads>;  // p.n: 16 for each pair of tiles
  extern __shared__ __align__(128) uint8_t stages[];
  __shared__ typename Walk::Space space;
  wait_for_previous();
  const Walk tiles(p, space);
  const uint32_t warp = threadIdx.x / 32, steps = (w.cols + T::kCols - 1) / T::kCols;
  Feed<T, S, Walk> feed(p, w, tiles);
  feed.fill(stages);
  uint32_t filled = 1;
  for (uint32_t next = blockIdx.x; next < tiles.count(); next += gridDim.x) {
    const Tile tile = tiles[next];
    const uint32_t pair = tile.column / kTileRows + warp;
    const bool there = w.row_tile(pair, 0) * kTileRows < w.rows;
    float sums[2][kTokens / 8][4] = {};
    for (uint32_t step = 0; step < steps; step++, filled++) {
      wait_for_copies<0>();
      __syncthreads();  // the stage has arrived for all, and all are done with the other one
      feed.fill(stages + filled % kStages * S::kStageBytes);
      const uint8_t* stage = stages + (filled - 1) % kStages * S::kStageBytes;
      if (there) meet<T>(stage + 2 * warp * T::kBytes, stage + S::kTokensAt, S::kTokenBytes, tile.rows, sums);
    }
    if (next + gridDim.x >= tiles.count()) let_next_start();
    if (there) store(p, w, tile, pair, sums);
  }
}

cudaError_t attribute(cudaDeviceAttr which, int* value) {
  int device;
  CUDA_TRY(cudaGetDevice(&device));
  CUDA_TRY(cudaDeviceGetAttribute(value, which, device));
  return cudaSuccess;
}

// Calls use(S()) with the shape that a block's shared memory holds: consumer devices have 99 KiB.
template <class T, typename Use>
cudaError_t with_shape(int shared, Use use) {
  if (Shape<T, 8>::kBytes <= static_cast<uint32_t>(shared)) return use(Shape<T, 8>());
  return use(Shape<T, 4>());
}

}  // namespace

bool takes_packed_groups(const Matrix& w, const Matrix* gate) {
  return !is_float(w.type) && w.count <= kMostGroups &&
         (!gate || (gate->type == w.type && gate->rows == w.rows && gate->cols == w.cols));
}

cudaError_t multiply_packed_groups(cudaStream_t stream, const PackedGroups& args) {
  const Matrix &w = *args.w, &first = args.gate ? *args.gate : w;
  if (args.rows == 0 || w.count == 0) return cudaSuccess;
  if (!takes_packed_groups(w, args.gate)) CUDA_TRY(cudaErrorInvalidValue);
  int shared, processors;
  CUDA_TRY(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared));
  CUDA_TRY(attribute(cudaDevAttrMultiProcessorCount, &processors));
  const uint32_t row_tiles = (w.rows + kTileRows - 1) / kTileRows;
  Product p = {};
  p.a = args.a, p.row_of = args.row_of, p.begin = args.begin, p.y_wide = args.y;
  p.groups = w.count, p.m = args.rows, p.a_stride = w.cols;
  p.n = kTileRows * (args.gate ? row_tiles : (row_tiles + 1) / 2);
  const Weights weights = {{first.packed, w.packed}, {first.stride, w.stride}, w.rows, w.cols, args.gate != nullptr};
  return with_tile(w.type, [&](auto tile) {
    using T = decltype(tile);
    return with_shape<T>(shared, [&](auto shape) -> cudaError_t {
      using S = decltype(shape);
      constexpr uint32_t kColumns = kTileRows * S::kWarps;
      const uint64_t most = uint64_t(p.m / kTokens + p.groups) * ((p.n + kColumns - 1) / kColumns);
      const uint32_t at_once = processors * std::clamp<uint32_t>(shared / S::kBytes, 1, 2);
      const uint32_t grid = static_cast<uint32_t>(std::min<uint64_t>(most, at_once));
      CUDA_TRY(launch({grid, S::kThreads, S::kBytes, stream}, multiply_packed<T, S>, p, weights));
      return cudaSuccess;
    });
  });
}

cudaError_t prepare_packed_groups() {
  int shared;
  CUDA_TRY(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared));
  for (const DType type : {DType::Q4_0, DType::Q5_0, DType::Q8_0, DType::Q4_K, DType::Q5_K, DType::Q6_K, DType::IQ4_NL})
    CUDA_TRY(with_tile(type, [&](auto tile) {
      using T = decltype(tile);
      return with_shape<T>(shared, [](auto shape) {
        using S = decltype(shape);
        return cudaFuncSetAttribute(multiply_packed<T, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes);
      });
    }));
  return cudaSuccess;
}

}  // namespace perigee::cuda
