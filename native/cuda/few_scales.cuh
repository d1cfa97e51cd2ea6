// Scales of a tile's rows g and g + 8 for the columns of a lane: those of unit base + (2 t + q) / N, q 0 or 1, where the
// columns of a tensor product are N tokens of 8 / N units (few_tile.cuh).
#pragma once
#include "matrix_format.cuh"

namespace perigee::cuda {

// Which of the units from `base` on a lane's column q belongs to.
template <int N>
__device__ constexpr uint32_t unit_of(uint32_t t, uint32_t q) {
  return (2 * t + q) / N % (8 / N);
}

// Byte of unit base + unit_of as the float 2^23 + byte.
template <int N, int kWords>
__device__ inline float raised_byte(const uint32_t (&words)[kWords], int base, uint32_t t, uint32_t q) {
  const uint32_t unit = unit_of<N>(t, q);
  const uint32_t word = N == 1 && t >= 2 ? words[base / 4 + 1] : words[base / 4];
  return __uint_as_float(__byte_perm(word, 0x4B000000, 0x7440 + base % 4 + unit % 4));
}

template <class T, int N, Scales kScales = T::kScales>
struct LaneScales;

template <class T, int N>
struct LaneScales<T, N, Scales::Halfs> {
  const __half* rows[2];
  float all[2][4];  // N >= 8: every lane needs every unit's
  __device__ LaneScales(const uint8_t* tile, uint32_t g, uint32_t t) {
    for (int row = 0; row < 2; row++) {
      rows[row] = reinterpret_cast<const __half*>(tile + T::kScalesAt) + (g + 8 * row) * 4 + unit_of<N>(t, 0);
      if constexpr (N >= 8) {
        const uint2 bits = *reinterpret_cast<const uint2*>(rows[row]);
        const float2 a = __half22float2(reinterpret_cast<const __half2&>(bits.x));
        const float2 b = __half22float2(reinterpret_cast<const __half2&>(bits.y));
        all[row][0] = a.x, all[row][1] = a.y, all[row][2] = b.x, all[row][3] = b.y;
      }
    }
  }
  __device__ float scale(int row, int base, int) const {
    if constexpr (N >= 8) return all[row][base];
    else return __half2float(rows[row][base]);
  }
};

template <class T, int N>
struct LaneScales<T, N, Scales::K4> {
  float d[2], dmin[2];
  uint32_t scales[2][2], mins[2][2], t;  // bytes: units 0..3, 4..7
  __device__ LaneScales(const uint8_t* tile, uint32_t g, uint32_t t) : t(t) {
    for (int row = 0; row < 2; row++) {
      const RowScales<T> all(tile, g);
      d[row] = all.d[row], dmin[row] = all.dmin[row];
      for (int i = 0; i < 2; i++) scales[row][i] = all.scales[row][i], mins[row][i] = all.mins[row][i];
    }
  }
  // d * (2^23 + scale) - d * 2^23 is exact, as both products are.
  __device__ float scale(int row, int base, int q) const {
    return fmaf(d[row], raised_byte<N>(scales[row], base, t, q), -0x1p23f * d[row]);
  }
};

template <class T, int N>
struct LaneScales<T, N, Scales::K6> {
  float d[2];
  uint32_t scales[2][4], t;
  __device__ LaneScales(const uint8_t* tile, uint32_t g, uint32_t t) : t(t) {
    for (int row = 0; row < 2; row++) {
      const uint4 bits = *reinterpret_cast<const uint4*>(tile + T::kScalesAt + (g + 8 * row) * 16);
      const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
      for (int i = 0; i < 4; i++) scales[row][i] = words[i] ^ 0x80808080;  // less 128, as unsigned
      d[row] = __half2float(*reinterpret_cast<const __half*>(tile + T::kScalesAt + 256 + (g + 8 * row) * 2));
    }
  }
  // Without d, which the caller multiplies a whole tile's sum by.
  __device__ float scale(int row, int base, int q) const {
    return raised_byte<N>(scales[row], base, t, q) - (0x1p23f + 128.0f);
  }
};

template <class T, int N>
struct LaneScales<T, N, Scales::Floats> {
  const float2* rows[2];
  uint32_t t;
  __device__ LaneScales(const uint8_t* tile, uint32_t g, uint32_t t) : t(t) {
    for (int row = 0; row < 2; row++)
      rows[row] = reinterpret_cast<const float2*>(tile + T::kScalesAt) + (g + 8 * row) * 2 * T::kGroups;
  }
  __device__ float scale(int row, int base, int q) const { return rows[row][base + unit_of<N>(t, q)].x; }
  __device__ float min(int row, int base, int q) const { return rows[row][base + unit_of<N>(t, q)].y; }
};

}  // namespace perigee::cuda
