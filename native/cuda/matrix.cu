// Packing at upload, and back to bf16 for products of many rows.
#include "check.h"
#include "launch.cuh"
#include "matrix_blocks.cuh"
#include "matrix_format.cuh"

namespace perigee::cuda {
namespace {

constexpr uint32_t kPackThreads = 128, kUnpackWarps = 4;

// One block of threads per tile; what lies beyond the matrix becomes zeros.
template <DType kType, class T>
__global__ void pack_kernel(const uint8_t* raw, uint32_t rows, uint32_t cols, uint8_t* packed) {
  using Block = typename BlockOf<kType>::Type;
  constexpr uint32_t kElements = sizeof(Block) > 80 ? 256 : 32;
  wait_for_previous();
  const uint32_t row0 = blockIdx.y * kTileRows, col0 = blockIdx.x * T::kCols;
  uint8_t* tile = packed + (uint64_t(blockIdx.y) * gridDim.x + blockIdx.x) * T::kBytes;
  const auto block = [=](uint32_t row, uint32_t col) -> const Block* {
    if (row0 + row >= rows || col0 + col >= cols) return nullptr;
    return reinterpret_cast<const Block*>(raw) + uint64_t(row0 + row) * (cols / kElements) + (col0 + col) / kElements;
  };
  // The code of byte b of word r of `lane` in group s, moved and masked.
  const auto code = [=](uint32_t lane, uint32_t s, uint32_t r, uint32_t b) -> uint32_t {
    const uint32_t row = lane / 4 + 8 * (r % 2), col = T::first_column(s, r, lane % 4) + b;
    const Block* at = block(row, col);
    return at ? code_of(*at, (col0 + col) % kElements) : 0;
  };

  auto* words = reinterpret_cast<uint32_t*>(tile);
  for (uint32_t i = threadIdx.x; i < T::kLowBytes / 4; i += kPackThreads) {
    const uint32_t v = i / 128, lane = i / 4 % 32, r = i % 4;
    uint32_t word = 0;
    for (uint32_t b = 0; b < 4; b++) {
      if constexpr (T::kBits == 8) word |= (code(lane, v, r, b) & 255) << 8 * b;
      if constexpr (T::kBits < 8) {
        word |= (code(lane, 2 * v, r, b) & 15) << 8 * b;
        word |= (code(lane, 2 * v + 1, r, b) & 15) << (8 * b + 4);
      }
    }
    words[i] = word;
  }
  if constexpr (T::kHighBytes > 0) {
    for (uint32_t i = threadIdx.x; i < T::kHighBytes / 4; i += kPackThreads) {
      uint32_t word = 0;
      for (uint32_t bit = 0; bit < 8; bit++) {
        for (uint32_t b = 0; b < 4; b++) {
          if constexpr (T::kBits == 5 && T::kGroups == 8)
            word |= (code(i / 4, bit, i % 4, b) >> 4 & 1) << (8 * b + bit);
          if constexpr (T::kBits == 5 && T::kGroups == 4)
            word |= (code(i / 2, bit % 4, i % 2 * 2 + bit / 4, b) >> 4 & 1) << (8 * b + bit);
          if constexpr (T::kBits == 6)
            if (bit < 4) word |= (code(i / 4 % 32, i / 128 * 4 + bit, i % 4, b) >> 4 & 3) << (8 * b + 2 * bit);
        }
      }
      words[T::kLowBytes / 4 + i] = word;
    }
  }

  uint8_t* scales = tile + T::kScalesAt;
  if constexpr (T::kScales == Scales::Halfs) {
    for (uint32_t i = threadIdx.x; i < kTileRows * T::kGroups; i += kPackThreads) {
      const Block* at = block(i / T::kGroups, i % T::kGroups * 32);
      reinterpret_cast<uint16_t*>(scales)[i] = at ? at->d : 0;
    }
  } else if constexpr (T::kScales == Scales::Floats) {
    for (uint32_t i = threadIdx.x; i < kTileRows * T::kGroups * 2; i += kPackThreads) {
      const uint32_t col = i % (T::kGroups * 2) * 16;
      const Block* at = block(i / (T::kGroups * 2), col);
      reinterpret_cast<float2*>(scales)[i] = at ? scale_of(*at, (col0 + col) % kElements) : float2{0.0f, 0.0f};
    }
  } else {
    for (uint32_t i = threadIdx.x; i < kTileRows * 16; i += kPackThreads) {
      const Block* at = block(i / 16, 0);
      if constexpr (T::kScales == Scales::K4) {
        scales[i] = at ? reinterpret_cast<const uint8_t*>(at)[i % 16] : 0;
      } else {
        scales[i] = at ? at->scales[i % 16] : 0;
        if (i % 16 == 0) reinterpret_cast<uint16_t*>(scales + 256)[i / 16] = at ? at->d : 0;
      }
    }
  }
}

template <DType kType, class T>
cudaError_t pack_as(cudaStream_t stream, const Matrix& to, uint32_t index, const uint8_t* raw) {
  const dim3 grid((to.cols + T::kCols - 1) / T::kCols, (to.rows + kTileRows - 1) / kTileRows);
  CUDA_TRY(launch({grid, kPackThreads, 0, stream}, pack_kernel<kType, T>, raw, to.rows, to.cols,
                  to.packed + index * to.stride));
  return cudaSuccess;
}

// One warp per tile: lane 4 g + t has eight neighbouring columns of rows g and g + 8 (or twice four, kHalves).
template <class T>
__global__ void unpack_kernel(const uint8_t* packed, uint32_t rows, uint32_t cols, uint32_t tiles_a_row, bf16* to) {
  wait_for_previous();
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t k = blockIdx.x * kUnpackWarps + threadIdx.x / 32;
  if (k >= tiles_a_row) return;
  const uint8_t* tile = packed + (uint64_t(blockIdx.y) * tiles_a_row + k) * T::kBytes;
  const RowScales<T> scales(tile, g);
#pragma unroll
  for (int s = 0; s < T::kGroups; s++) {
    uint32_t words[4];
    read_codes<T>(tile, lane, s, words);
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const uint32_t row = blockIdx.y * kTileRows + g + 8 * (r % 2), col = k * T::kCols + T::first_column(s, r, t);
      const float scale = T::kUnit * scales.scale(r % 2, s, r / 2), min = scales.min(r % 2, s, r / 2);
      float value[4];
      for (int b = 0; b < 4; b++) value[b] = fmaf(scale, float(int8_t(words[r] >> 8 * b)), -min);
      const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(value[0], value[1]),
                                       __floats2bfloat162_rn(value[2], value[3])};
      if (row < rows && col < cols)
        *reinterpret_cast<uint2*>(to + uint64_t(row) * cols + col) = *reinterpret_cast<const uint2*>(pairs);
    }
  }
}

template <DType kType>
__global__ void narrow_kernel(const void* from, uint64_t count, bf16* to) {
  wait_for_previous();
  for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < count; i += uint64_t(gridDim.x) * blockDim.x)
    to[i] = kType == DType::F32 ? __float2bfloat16(static_cast<const float*>(from)[i])
                                : __float2bfloat16(__half2float(static_cast<const __half*>(from)[i]));
}

}  // namespace

uint64_t packed_bytes(DType type, uint32_t rows, uint32_t cols) {
  uint64_t bytes = uint64_t(rows) * row_bytes(type, cols);
  if (!is_float(type)) {
    bytes = with_tile(type, [&](auto tile) {
      return uint64_t((rows + kTileRows - 1) / kTileRows) * ((cols + tile.kCols - 1) / tile.kCols) * tile.kBytes;
    });
  }
  return (bytes + 255) & ~uint64_t(255);
}

cudaError_t pack(cudaStream_t stream, const Matrix& to, uint32_t index, const uint8_t* raw) {
  switch (to.type) {
    case DType::Q4_0:
      return pack_as<DType::Q4_0, TileQ4_0>(stream, to, index, raw);
    case DType::Q5_0:
      return pack_as<DType::Q5_0, TileQ5_0>(stream, to, index, raw);
    case DType::Q8_0:
      return pack_as<DType::Q8_0, TileQ8_0>(stream, to, index, raw);
    case DType::Q4_K:
      return pack_as<DType::Q4_K, TileQ4_K>(stream, to, index, raw);
    case DType::Q5_K:
      return pack_as<DType::Q5_K, TileQ5_K>(stream, to, index, raw);
    case DType::Q6_K:
      return pack_as<DType::Q6_K, TileQ6_K>(stream, to, index, raw);
    case DType::Q4_1:
      return pack_as<DType::Q4_1, TileOther>(stream, to, index, raw);
    case DType::Q5_1:
      return pack_as<DType::Q5_1, TileOther>(stream, to, index, raw);
    case DType::IQ4_NL:
      return pack_as<DType::IQ4_NL, TileOther>(stream, to, index, raw);
    case DType::IQ4_XS:
      return pack_as<DType::IQ4_XS, TileOther>(stream, to, index, raw);
    case DType::Q2_K:
      return pack_as<DType::Q2_K, TileOther>(stream, to, index, raw);
    case DType::Q3_K:
      return pack_as<DType::Q3_K, TileOther>(stream, to, index, raw);
    case DType::F32:
    case DType::F16:
    case DType::BF16:
      break;
  }
  CUDA_TRY(cudaMemcpyAsync(to.packed + index * to.stride, raw, to.rows * row_bytes(to.type, to.cols),
                           cudaMemcpyDeviceToDevice, stream));
  return cudaSuccess;
}

cudaError_t unpack(cudaStream_t stream, const Matrix& from, uint32_t index, bf16* to) {
  const uint8_t* packed = from.packed + index * from.stride;
  const uint64_t count = uint64_t(from.rows) * from.cols;
  if (from.type == DType::BF16) {
    CUDA_TRY(cudaMemcpyAsync(to, packed, 2 * count, cudaMemcpyDeviceToDevice, stream));
  } else if (is_float(from.type)) {
    const Launch how = {1024, 256, 0, stream};
    CUDA_TRY(from.type == DType::F32 ? launch(how, narrow_kernel<DType::F32>, packed, count, to)
                                     : launch(how, narrow_kernel<DType::F16>, packed, count, to));
  } else {
    return with_tile(from.type, [&](auto tile) -> cudaError_t {
      const uint32_t tiles = (from.cols + tile.kCols - 1) / tile.kCols;
      const dim3 grid((tiles + kUnpackWarps - 1) / kUnpackWarps, (from.rows + kTileRows - 1) / kTileRows);
      CUDA_TRY(launch({grid, 32 * kUnpackWarps, 0, stream}, unpack_kernel<decltype(tile)>, packed, from.rows, from.cols,
                      tiles, to));
      return cudaSuccess;
    });
  }
  return cudaSuccess;
}

}  // namespace perigee::cuda
