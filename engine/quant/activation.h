// Activation rows: how a float row is stored while it meets quantized weights.
//
// A row is laid out by field, not by block, so that SIMD loads are whole and aligned: first all quants, then the scales
// as floats, then sums of quants (they serve the offsets and mins of the weights). Rows start 16-byte aligned and take a
// multiple of 16 bytes; scales are padded to a multiple of 4 blocks with zeros.
//
//   Q8_0, nb = cols / 32 blocks:    i8 q[cols] | f32 d[pad4(nb)] | i32 sum[pad4(nb)], the sum of each block's 32 quants
//   Q8_K, nb = cols / 256 blocks:   i8 q[cols] | f32 d[pad4(nb)] | i16 sum32[nb][8] | i16 sum16[nb][16]
//   F32:                            f32 x[cols], padded to 16 bytes
//
// Quants lie in -127..127. Q8_0's d is a half's value, as in the peers; Q8_K's is a float and may be negative.
#pragma once
#include "../tensor.h"

namespace perigee {

constexpr uint32_t pad4(uint32_t n) { return (n + 3) & ~3u; }

struct Q8_0Row {
  const int8_t* q;
  const float* d;
  const int32_t* sum;
};

struct Q8_KRow {
  const int8_t* q;
  const float* d;
  const int16_t* sum32;
  const int16_t* sum16;
};

constexpr size_t q8_0_row_bytes(uint32_t cols) { return cols + size_t(8) * pad4(cols / 32); }
constexpr size_t q8_k_row_bytes(uint32_t cols) {
  return cols + size_t(4) * pad4(cols / 256) + size_t(48) * (cols / 256);
}

inline Q8_0Row q8_0_row(const uint8_t* row, uint32_t cols) {
  const uint8_t* d = row + cols;
  return {reinterpret_cast<const int8_t*>(row), reinterpret_cast<const float*>(d),
          reinterpret_cast<const int32_t*>(d + size_t(4) * pad4(cols / 32))};
}

inline Q8_KRow q8_k_row(const uint8_t* row, uint32_t cols) {
  const uint8_t* d = row + cols;
  const uint8_t* sums = d + size_t(4) * pad4(cols / 256);
  return {reinterpret_cast<const int8_t*>(row), reinterpret_cast<const float*>(d),
          reinterpret_cast<const int16_t*>(sums), reinterpret_cast<const int16_t*>(sums + size_t(16) * (cols / 256))};
}

// A block whose largest magnitude is below this is stored as zeros: its inverse scale could overflow.
constexpr float kSmallestMagnitude = 0x1p-100f;

// Quantizes one row, in plain C++: the specification of Kernels::quantize.
//   Q8_0: d = amax / 127 stored as a half; q = round(x * (1 / d)) with the unrounded d.
//   Q8_K: m = the value of largest magnitude (the positive one if both signs have it); q = round(x * (-127 / m)),
//         d = 1 / (-127 / m).
// round: to nearest, ties to even.
void quantize_row(Activation kind, const float* x, uint32_t cols, uint8_t* out);

}  // namespace perigee
