// The packed form of quantized weights: tiles of 16 rows x 128 or 256 columns in the order in which the lanes of a warp
// read them as the left operand of an integer tensor product (mma m16n8k32, or k16 where scales are per 16 columns).
//
// Lane 4 g + t holds, of each group of 32 columns, four words of four codes: words 0 and 2 of row g, 1 and 3 of row
// g + 8. Which columns: first_column(). A tile is
//   codes  8-bit types: 512 bytes a group, lane by lane its four words. Others: the low four bits, two groups in the
//          nibbles of one 512-byte run (even group low)
//   high   5-bit types: one bit a code; 6-bit: two
//   scales as the blocks have them, row by row
// Codes of types without mins are signed and sit in the upper bits of a byte: they come out multiplied by 2^kShift.
#pragma once
#include <cuda_fp16.h>

#include "matrix.h"

namespace perigee::cuda {

constexpr uint32_t kTileRows = 16;

enum class Scales {
  Halfs,   // d per 32 columns
  K4,      // d, dmin and packed 6-bit scales and mins per 32 columns: the first 16 bytes of BlockQ4_K and BlockQ5_K
  K6,      // int8 scales per 16 columns, then d
  Floats,  // scale and min per 16 columns, for types without a form of their own
};

template <int kBitsOf, int kGroupsOf, Scales kScalesOf>
struct PackedTile {
  static constexpr int kBits = kBitsOf, kGroups = kGroupsOf;  // groups of 32 columns
  static constexpr Scales kScales = kScalesOf;
  static constexpr uint32_t kCols = 32 * kGroups;
  static constexpr bool kHalves = kScales == Scales::K6 || kScales == Scales::Floats;  // a scale per 16 columns
  static constexpr int kShift = kScales == Scales::K4 ? 0 : 8 - kBits;
  static constexpr float kUnit = 1.0f / (1 << kShift);
  static constexpr uint32_t kLowBytes = kGroups * (kBits == 8 ? 512 : 256);
  static constexpr uint32_t kHighBytes = kBits == 5 ? kGroups * 64 : kBits == 6 ? kGroups * 128 : 0;
  static constexpr uint32_t kScalesAt = kLowBytes + kHighBytes;
  static constexpr uint32_t kScaleBytes = kTileRows * (kScales == Scales::Halfs ? 2 * kGroups
                                                       : kScales == Scales::K4  ? 16
                                                       : kScales == Scales::K6  ? 18
                                                                                : 16 * kGroups);
  static constexpr uint32_t kBytes = kScalesAt + kScaleBytes;
  static_assert(kBytes % 16 == 0);
  static_assert(kGroups == 8 || (kGroups == 4 && kBits != 6));

  // First of the four columns of word r of lane 4 g + t in group s.
  static __host__ __device__ constexpr uint32_t first_column(uint32_t s, uint32_t r, uint32_t t) {
    return 32 * s + (kHalves ? 16 * (r >> 1) + 4 * t : 8 * t + 4 * (r >> 1));
  }
};

using TileQ4_0 = PackedTile<4, 4, Scales::Halfs>;
using TileQ5_0 = PackedTile<5, 4, Scales::Halfs>;
using TileQ8_0 = PackedTile<8, 4, Scales::Halfs>;
using TileQ4_K = PackedTile<4, 8, Scales::K4>;
using TileQ5_K = PackedTile<5, 8, Scales::K4>;
using TileQ6_K = PackedTile<6, 8, Scales::K6>;
using TileOther = PackedTile<8, 4, Scales::Floats>;

// Calls use(T()) with the tile of a quantized type.
template <typename Use>
auto with_tile(DType type, Use use) {
  switch (type) {
    case DType::Q4_0:
      return use(TileQ4_0());
    case DType::Q5_0:
      return use(TileQ5_0());
    case DType::Q8_0:
      return use(TileQ8_0());
    case DType::Q4_K:
      return use(TileQ4_K());
    case DType::Q5_K:
      return use(TileQ5_K());
    case DType::Q6_K:
      return use(TileQ6_K());
    default:
      return use(TileOther());
  }
}

constexpr bool is_float(DType type) { return type == DType::F32 || type == DType::F16 || type == DType::BF16; }

// Moves a field within each byte of a word from bit `from` to bit `to`; bits of neighbours are for the caller to mask.
__device__ constexpr uint32_t move_bits(uint32_t word, int from, int to) {
  return to >= from ? word << (to - from) : word >> (from - to);
}

// The four words of this lane in group s, bytes as the tensor cores take them.
template <class T>
__device__ inline void read_codes(const uint8_t* tile, uint32_t lane, int s, uint32_t (&words)[4]) {
  const uint4 low = *reinterpret_cast<const uint4*>(tile + (T::kBits == 8 ? s : s / 2) * 512 + lane * 16);
  const uint32_t of[4] = {low.x, low.y, low.z, low.w};
  if constexpr (T::kBits == 8) {
    for (int r = 0; r < 4; r++) words[r] = of[r];
  } else {
    constexpr uint32_t kEach = 0x01010101;
    for (int r = 0; r < 4; r++) words[r] = move_bits(of[r], 4 * (s % 2), T::kShift) & (15 * kEach << T::kShift);
    constexpr int kTop = 4 + T::kShift;
    const uint8_t* plane = tile + T::kLowBytes;
    if constexpr (T::kBits == 5 && T::kGroups == 8) {
      const uint4 high = *reinterpret_cast<const uint4*>(plane + lane * 16);
      const uint32_t bits[4] = {high.x, high.y, high.z, high.w};
      for (int r = 0; r < 4; r++) words[r] |= move_bits(bits[r], s, kTop) & (kEach << kTop);
    }
    if constexpr (T::kBits == 5 && T::kGroups == 4) {
      const uint2 high = *reinterpret_cast<const uint2*>(plane + lane * 8);
      const uint32_t bits[2] = {high.x, high.y};
      for (int r = 0; r < 4; r++) words[r] |= move_bits(bits[r / 2], s + 4 * (r % 2), kTop) & (kEach << kTop);
    }
    if constexpr (T::kBits == 6) {
      const uint4 high = *reinterpret_cast<const uint4*>(plane + (s / 4) * 512 + lane * 16);
      const uint32_t bits[4] = {high.x, high.y, high.z, high.w};
      for (int r = 0; r < 4; r++) words[r] |= move_bits(bits[r], 2 * (s % 4), kTop) & (3 * kEach << kTop);
    }
  }
}

// Byte j of a word of unsigned bytes as a float, without the slow conversion.
__device__ inline float byte_as_float(uint32_t word, uint32_t j) {
  return __uint_as_float(__byte_perm(word, 0x4B000000, 0x7440 + j)) - 0x1p23f;
}

// The scales of rows g and g + 8 of a tile: value = code * scale(row, s, half) - min(row, s, half), row 0 or 1.
// Codes come multiplied by 2^kShift and scales do not make up for it: results take kUnit at the end.
template <class T, Scales kScales = T::kScales>
struct RowScales;

template <class T>
struct RowScales<T, Scales::Halfs> {
  float of[2][4];
  __device__ RowScales(const uint8_t* tile, uint32_t g) {
    for (int row = 0; row < 2; row++) {
      const uint2 bits = *reinterpret_cast<const uint2*>(tile + T::kScalesAt + (g + 8 * row) * 8);
      const float2 a = __half22float2(reinterpret_cast<const __half2&>(bits.x));
      const float2 b = __half22float2(reinterpret_cast<const __half2&>(bits.y));
      of[row][0] = a.x, of[row][1] = a.y, of[row][2] = b.x, of[row][3] = b.y;
    }
  }
  __device__ float scale(int row, int s, int) const { return of[row][s]; }
  __device__ float min(int, int, int) const { return 0.0f; }
};

template <class T>
struct RowScales<T, Scales::K4> {
  float d[2], dmin[2];
  uint32_t scales[2][2], mins[2][2];  // bytes: groups 0..3, 4..7
  __device__ RowScales(const uint8_t* tile, uint32_t g) {
    for (int row = 0; row < 2; row++) {
      const uint4 bits = *reinterpret_cast<const uint4*>(tile + T::kScalesAt + (g + 8 * row) * 16);
      const float2 both = __half22float2(reinterpret_cast<const __half2&>(bits.x));
      d[row] = both.x, dmin[row] = both.y;
      scales[row][0] = bits.y & 0x3f3f3f3f;
      mins[row][0] = bits.z & 0x3f3f3f3f;
      scales[row][1] = (bits.w & 0x0f0f0f0f) | (bits.y >> 2 & 0x30303030);
      mins[row][1] = (bits.w >> 4 & 0x0f0f0f0f) | (bits.z >> 2 & 0x30303030);
    }
  }
  // Scales are small integers: d * (2^23 + scale) - d * 2^23 is exact, as both products are.
  __device__ float scale(int row, int s, int) const {
    const float raised = __uint_as_float(__byte_perm(scales[row][s / 4], 0x4B000000, 0x7440 + s % 4));
    return fmaf(d[row], raised, -0x1p23f * d[row]);
  }
  __device__ float min(int row, int s, int) const { return dmin[row] * byte_as_float(mins[row][s / 4], s % 4); }
};

template <class T>
struct RowScales<T, Scales::K6> {
  float d[2];
  uint4 scales[2];
  __device__ RowScales(const uint8_t* tile, uint32_t g) {
    for (int row = 0; row < 2; row++) {
      scales[row] = *reinterpret_cast<const uint4*>(tile + T::kScalesAt + (g + 8 * row) * 16);
      d[row] = __half2float(*reinterpret_cast<const __half*>(tile + T::kScalesAt + 256 + (g + 8 * row) * 2));
    }
  }
  __device__ float scale(int row, int s, int half) const {
    const uint32_t words[4] = {scales[row].x, scales[row].y, scales[row].z, scales[row].w};
    return d[row] * (byte_as_float(words[s / 2] ^ 0x80808080, s % 2 * 2 + half) - 128.0f);
  }
  __device__ float min(int, int, int) const { return 0.0f; }
};

template <class T>
struct RowScales<T, Scales::Floats> {
  const float2* of[2];
  __device__ RowScales(const uint8_t* tile, uint32_t g) {
    for (int row = 0; row < 2; row++)
      of[row] = reinterpret_cast<const float2*>(tile + T::kScalesAt) + (g + 8 * row) * 2 * T::kGroups;
  }
  __device__ float scale(int row, int s, int half) const { return of[row][2 * s + half].x; }
  __device__ float min(int row, int s, int half) const { return of[row][2 * s + half].y; }
};

}  // namespace perigee::cuda
