// The file's own blocks (engine/quant/blocks.h) to bf16 and float.
//
// A thread makes eight neighbouring values. Blocks have odd sizes and lie at even addresses only, so a piece of the matrix is
// first brought into shared memory by whole lines.
#include <cuda_fp16.h>

#include "../../engine/quant/blocks.h"
#include "launch.cuh"
#include "matrix.h"

namespace perigee::cuda {
namespace {

__device__ float half_value(half bits) { return __half2float(__ushort_as_half(bits)); }

// Bits `bit` .. `bit` + count - 1 of a byte.
__device__ uint32_t bits(uint8_t byte, uint32_t bit, uint32_t count) { return byte >> bit & ((1u << count) - 1); }

// The values of codes: i in steps of 8 is the first of eight elements of the block.
__device__ void values(const float* block, uint32_t i, float (&y)[8]) {
  for (uint32_t j = 0; j < 8; j++) y[j] = block[i + j];
}

__device__ void values(const __half* block, uint32_t i, float (&y)[8]) {
  for (uint32_t j = 0; j < 8; j++) y[j] = __half2float(block[i + j]);
}

__device__ void values(const bf16* block, uint32_t i, float (&y)[8]) {
  for (uint32_t j = 0; j < 8; j++) y[j] = __bfloat162float(block[i + j]);
}

// Nibble formats of 32: elements 0..15 low, 16..31 high.
__device__ uint32_t nibble(const uint8_t* qs, uint32_t i) { return bits(qs[i % 16], i / 16 * 4, 4); }

__device__ uint32_t fifth(const uint8_t* qh, uint32_t i) { return bits(qh[i / 8], i % 8, 1) << 4; }

__device__ void values(const BlockQ4_0* block, uint32_t i, float (&y)[8]) {
  const float d = half_value(block->d);
  for (uint32_t j = 0; j < 8; j++) y[j] = d * (int(nibble(block->qs, i + j)) - 8);
}

__device__ void values(const BlockQ4_1* block, uint32_t i, float (&y)[8]) {
  const float d = half_value(block->d), m = half_value(block->m);
  for (uint32_t j = 0; j < 8; j++) y[j] = d * nibble(block->qs, i + j) + m;
}

__device__ void values(const BlockQ5_0* block, uint32_t i, float (&y)[8]) {
  const float d = half_value(block->d);
  for (uint32_t j = 0; j < 8; j++) y[j] = d * (int(nibble(block->qs, i + j) | fifth(block->qh, i + j)) - 16);
}

__device__ void values(const BlockQ5_1* block, uint32_t i, float (&y)[8]) {
  const float d = half_value(block->d), m = half_value(block->m);
  for (uint32_t j = 0; j < 8; j++) y[j] = d * (nibble(block->qs, i + j) | fifth(block->qh, i + j)) + m;
}

__device__ void values(const BlockQ8_0* block, uint32_t i, float (&y)[8]) {
  const float d = half_value(block->d);
  for (uint32_t j = 0; j < 8; j++) y[j] = d * block->qs[i + j];
}

// kIQ4Values[q], from four words: an array indexed at run time would go through local memory.
__device__ int iq4_value(uint32_t q) {
  constexpr uint32_t words[4] = {0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535};
  const uint32_t low = __byte_perm(words[0], words[1], q & 7), high = __byte_perm(words[2], words[3], q & 7);
  return static_cast<int8_t>(q < 8 ? low : high);
}

__device__ void values(const BlockIQ4_NL* block, uint32_t i, float (&y)[8]) {
  const float d = half_value(block->d);
  for (uint32_t j = 0; j < 8; j++) y[j] = d * iq4_value(nibble(block->qs, i + j));
}

// Superblocks. Two-bit codes: element 128 n + 32 j + l is bits 2 j, 2 j + 1 of byte 32 n + l.
__device__ uint32_t two_bits(const uint8_t* q, uint32_t i) {
  return bits(q[i / 128 * 32 + i % 32], i % 128 / 32 * 2, 2);
}

// Nibbles of Q4_K and Q5_K: elements 64 p + l and 64 p + 32 + l share byte 32 p + l.
__device__ uint32_t nibble_k4(const uint8_t* qs, uint32_t i) {
  return bits(qs[i / 64 * 32 + i % 32], i % 64 / 32 * 4, 4);
}

__device__ void values(const BlockQ2_K* block, uint32_t i, float (&y)[8]) {
  const uint8_t scale = block->scales[i / 16];
  const float d = half_value(block->d) * (scale & 15), m = half_value(block->dmin) * (scale >> 4);
  for (uint32_t j = 0; j < 8; j++) y[j] = d * two_bits(block->qs, i + j) - m;
}

__device__ void values(const BlockQ3_K* block, uint32_t i, float (&y)[8]) {
  const uint32_t s = i / 16;
  const uint32_t scale = bits(block->scales[s % 8], s / 8 * 4, 4) | bits(block->scales[8 + s % 4], s / 4 * 2, 2) << 4;
  const float d = half_value(block->d) * (int(scale) - 32);
  for (uint32_t j = 0; j < 8; j++)
    y[j] = d * (int(two_bits(block->qs, i + j) | bits(block->hmask[(i + j) % 32], i / 32, 1) << 2) - 4);
}

// Scale and min of sub-block s of Q4_K and Q5_K.
__device__ void scales_k4(const uint8_t* packed, uint32_t s, float& scale, float& min) {
  const uint32_t low = s % 4;
  scale = s < 4 ? packed[low] & 63 : bits(packed[8 + low], 0, 4) | packed[low] >> 6 << 4;
  min = s < 4 ? packed[4 + low] & 63 : bits(packed[8 + low], 4, 4) | packed[4 + low] >> 6 << 4;
}

__device__ void values(const BlockQ4_K* block, uint32_t i, float (&y)[8]) {
  float d, m;
  scales_k4(block->scales, i / 32, d, m);
  d *= half_value(block->d), m *= half_value(block->dmin);
  for (uint32_t j = 0; j < 8; j++) y[j] = d * nibble_k4(block->qs, i + j) - m;
}

__device__ void values(const BlockQ5_K* block, uint32_t i, float (&y)[8]) {
  float d, m;
  scales_k4(block->scales, i / 32, d, m);
  d *= half_value(block->d), m *= half_value(block->dmin);
  for (uint32_t j = 0; j < 8; j++)
    y[j] = d * (nibble_k4(block->qs, i + j) | bits(block->qh[(i + j) % 32], i / 32, 1) << 4) - m;
}

__device__ void values(const BlockQ6_K* block, uint32_t i, float (&y)[8]) {
  const float d = half_value(block->d) * block->scales[i / 16];
  const uint8_t* ql = block->ql + i / 128 * 64 + i % 64;
  for (uint32_t j = 0; j < 8; j++)
    y[j] = d * (int(bits(ql[j], i % 128 / 64 * 4, 4) | two_bits(block->qh, i + j) << 4) - 32);
}

__device__ void values(const BlockIQ4_XS* block, uint32_t i, float (&y)[8]) {
  const uint32_t s = i / 32;
  const uint32_t scale = bits(block->scales_l[s / 2], s % 2 * 4, 4) | (block->scales_h >> 2 * s & 3) << 4;
  const float d = half_value(block->d) * (int(scale) - 32);
  for (uint32_t j = 0; j < 8; j++) y[j] = d * iq4_value(nibble(block->qs + 16 * s, i % 32 + j));
}

template <typename Block>
constexpr uint32_t kElements = 1;
template <>
constexpr uint32_t kElements<BlockQ4_0> = 32;
template <>
constexpr uint32_t kElements<BlockQ4_1> = 32;
template <>
constexpr uint32_t kElements<BlockQ5_0> = 32;
template <>
constexpr uint32_t kElements<BlockQ5_1> = 32;
template <>
constexpr uint32_t kElements<BlockQ8_0> = 32;
template <>
constexpr uint32_t kElements<BlockIQ4_NL> = 32;
template <>
constexpr uint32_t kElements<BlockQ2_K> = 256;
template <>
constexpr uint32_t kElements<BlockQ3_K> = 256;
template <>
constexpr uint32_t kElements<BlockQ4_K> = 256;
template <>
constexpr uint32_t kElements<BlockQ5_K> = 256;
template <>
constexpr uint32_t kElements<BlockQ6_K> = 256;
template <>
constexpr uint32_t kElements<BlockIQ4_XS> = 256;

// Values first .. first + 7 of a run of blocks.
template <typename Block>
__device__ void values_of(const uint8_t* blocks, uint64_t first, float (&y)[8]) {
  constexpr uint32_t kIn = kElements<Block>;
  values(reinterpret_cast<const Block*>(blocks) + first / kIn, first % kIn, y);
}

constexpr uint32_t kThreads = 256;
// Of any type a multiple of 16 bytes.
constexpr uint32_t kPiece = 4096;

template <typename Block>
__global__ void __launch_bounds__(kThreads) widen_blocks(const uint8_t* raw, uint64_t count, bf16* to) {
  constexpr uint32_t kPieceBytes = kPiece / kElements<Block> * sizeof(Block);
  static_assert(kPieceBytes % 16 == 0);
  __shared__ __align__(16) uint8_t piece[kPieceBytes];
  wait_for_previous();
  const uint64_t first = uint64_t(blockIdx.x) * kPiece;
  const uint32_t here = static_cast<uint32_t>(count - first < kPiece ? count - first : kPiece);
  const uint32_t bytes = here / kElements<Block> * sizeof(Block);
  const uint8_t* from = raw + uint64_t(blockIdx.x) * kPieceBytes;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < bytes / 16; i += kThreads)
    reinterpret_cast<uint4*>(piece)[i] = __ldcs(reinterpret_cast<const uint4*>(from) + i);
  for (uint32_t i = bytes / 16 * 8 + threadIdx.x; i < bytes / 2; i += kThreads)  // the last piece's tail
    reinterpret_cast<uint16_t*>(piece)[i] = reinterpret_cast<const uint16_t*>(from)[i];
  __syncthreads();
  let_next_start();
  for (uint32_t i = threadIdx.x * 8; i < here; i += kThreads * 8) {
    float y[8];
    values_of<Block>(piece, i, y);
    __nv_bfloat162 out[4];
    for (uint32_t j = 0; j < 4; j++) out[j] = __floats2bfloat162_rn(y[2 * j], y[2 * j + 1]);
    *reinterpret_cast<uint4*>(to + first + i) = *reinterpret_cast<const uint4*>(out);
  }
}

template <typename Block>
__global__ void __launch_bounds__(kThreads)
    look_up_rows(const uint8_t* table, uint32_t cols, const int32_t* tokens, float* x) {
  wait_for_previous();
  const uint64_t token = tokens[blockIdx.y];
  const uint32_t i = (blockIdx.x * kThreads + threadIdx.x) * 8;
  if (i >= cols) return;
  float y[8];
  values_of<Block>(table + token * (cols / kElements<Block> * sizeof(Block)), i, y);
  float4* to = reinterpret_cast<float4*>(x + uint64_t(blockIdx.y) * cols + i);
  to[0] = {y[0], y[1], y[2], y[3]};
  to[1] = {y[4], y[5], y[6], y[7]};
}

// Calls what(a null pointer to the type's block), so that one switch serves both kernels.
template <typename What>
cudaError_t with_block(DType type, What what) {
  switch (type) {
    case DType::F32:
      return what(static_cast<float*>(nullptr));
    case DType::F16:
      return what(static_cast<__half*>(nullptr));
    case DType::BF16:
      return what(static_cast<bf16*>(nullptr));
    case DType::Q4_0:
      return what(static_cast<BlockQ4_0*>(nullptr));
    case DType::Q4_1:
      return what(static_cast<BlockQ4_1*>(nullptr));
    case DType::Q5_0:
      return what(static_cast<BlockQ5_0*>(nullptr));
    case DType::Q5_1:
      return what(static_cast<BlockQ5_1*>(nullptr));
    case DType::Q8_0:
      return what(static_cast<BlockQ8_0*>(nullptr));
    case DType::Q2_K:
      return what(static_cast<BlockQ2_K*>(nullptr));
    case DType::Q3_K:
      return what(static_cast<BlockQ3_K*>(nullptr));
    case DType::Q4_K:
      return what(static_cast<BlockQ4_K*>(nullptr));
    case DType::Q5_K:
      return what(static_cast<BlockQ5_K*>(nullptr));
    case DType::Q6_K:
      return what(static_cast<BlockQ6_K*>(nullptr));
    case DType::IQ4_NL:
      return what(static_cast<BlockIQ4_NL*>(nullptr));
    case DType::IQ4_XS:
      return what(static_cast<BlockIQ4_XS*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t widen(cudaStream_t stream, DType type, const uint8_t* raw, uint32_t rows, uint32_t cols, bf16* to) {
  const uint64_t count = uint64_t(rows) * cols;
  if (count == 0) return cudaSuccess;
  return with_block(type, [&]<typename Block>(Block*) {
    const uint32_t pieces = static_cast<uint32_t>((count + kPiece - 1) / kPiece);
    CUDA_TRY(launch({pieces, kThreads, 0, stream}, widen_blocks<Block>, raw, count, to));
    return cudaSuccess;
  });
}

cudaError_t look_up(cudaStream_t stream, DType type, const uint8_t* raw_table, uint32_t cols, const int32_t* tokens,
                    uint32_t n, float* x) {
  if (n == 0) return cudaSuccess;
  return with_block(type, [&]<typename Block>(Block*) {
    const dim3 grid((cols + kThreads * 8 - 1) / (kThreads * 8), n);
    CUDA_TRY(launch({grid, kThreads, 0, stream}, look_up_rows<Block>, raw_table, cols, tokens, x));
    return cudaSuccess;
  });
}

}  // namespace perigee::cuda
