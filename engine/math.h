// The engine's own elementary functions: libm differs between toolchains, and results must not. Only +, -, *, /, sqrt
// (exact everywhere) and integer operations are used. Errors are measured by test/kernels/math.test.ts.
#pragma once
#include <stdint.h>

namespace perigee {

inline float sqrt_float(float x) { return __builtin_sqrtf(x); }

// The steps of exp_float, shared with the SIMD tables, which apply them in the same order.
struct ExpFloat {
  static constexpr float kLow = -104.0f, kHigh = 89.0f;  // beyond these the float result is 0 or infinity
  static constexpr float kLog2e = 0x1.715476p0f;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  static constexpr int32_t kRoundBits = 0x4b400000;
  static constexpr float kLn2High = 0x1.62e4p-1f;  // 16 bits: n * kLn2High is exact
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  // exp(r) = 1 + (r + r^2 P(r)), |r| <= ln 2 / 2, relative error of the polynomial 3.1e-9 (minimax fit)
  static constexpr float kP0 = 0x1.fffffcp-2f, kP1 = 0x1.555492p-3f, kP2 = 0x1.5558f2p-5f, kP3 = 0x1.123a2p-7f,
                         kP4 = 0x1.6a23cep-10f;
};

// e^x; relative error below 1.2e-7 (one unit in the last place), 0 below -104, infinity above 88.73.
inline float exp_float(float x) {
  using E = ExpFloat;
  x = x < E::kLow ? E::kLow : x;
  x = E::kHigh < x ? E::kHigh : x;
  const float shifted = x * E::kLog2e + E::kRound;
  const float n = shifted - E::kRound;
  const float r = (x - n * E::kLn2High) - n * E::kLn2Low;
  const float p = (((E::kP4 * r + E::kP3) * r + E::kP2) * r + E::kP1) * r + E::kP0;
  const float y = 1.0f + (r + r * r * p);
  // 2^n in two factors, so that denormal results are rounded once and n = 128 has a factor at all.
  const int32_t i = __builtin_bit_cast(int32_t, shifted) - E::kRoundBits;
  const int32_t half = i >> 1;
  const float scale1 = __builtin_bit_cast(float, (half + 127) << 23);
  const float scale2 = __builtin_bit_cast(float, (i - half + 127) << 23);
  return y * scale1 * scale2;
}

// Floats whose products are floats: 12 significant bits, multiples of 2^-64, at most 2^60. A multiply-add that rounds once
// gives the same of them as one that rounds twice.
struct TwelveBits {
  static constexpr float kMost = 0x1p60f;
  static constexpr float kGrid = 0x1p-40f;  // adding and taking it away rounds to multiples of 2^-64, or coarser ones
  static constexpr float kSplit = 0x1p12f + 1;  // Veltkamp's: x * kSplit less what that exceeds x by has 24 - 12 bits
};

// x as the nearest of them; NaN stays.
inline float twelve_bits(float x) {
  using T = TwelveBits;
  x = x < -T::kMost ? -T::kMost : x;
  x = T::kMost < x ? T::kMost : x;
  x = (x + T::kGrid) - T::kGrid;
  const float high = x * T::kSplit;
  return high - (high - x);
}

// The double functions serve the rope tables, once per model and position: clarity before speed. Relative (sin and cos:
// absolute) error below 4e-16.

constexpr double kRoundDouble = 0x1.8p52;  // adding it rounds to the nearest integer

// e^x for |x| <= 700.
inline double exp_double(double x) {
  const double n = (x * 0x1.71547652b82fep0 + kRoundDouble) - kRoundDouble;
  const double r = (x - n * 0x1.62e42fefp-1) - n * 0x1.473de6af278edp-34;  // ln 2 = 33 bits + the rest
  double y = 1.0;
  for (int k = 14; k >= 1; k--) y = 1.0 + y * r / k;  // Taylor; |r| <= 0.35, remainder 1e-19
  return y * __builtin_bit_cast(double, (int64_t(n) + 1023) << 52);
}

// ln x for normal x > 0.
inline double log_double(double x) {
  const int64_t bits = __builtin_bit_cast(int64_t, x);
  int64_t exponent = (bits >> 52) - 1023;
  double m = __builtin_bit_cast(double, (bits & 0xfffffffffffff) | 0x3ff0000000000000);
  if (m > 0x1.6a09e667f3bcdp0) {  // above sqrt 2
    m *= 0.5;
    exponent++;
  }
  const double s = (m - 1.0) / (m + 1.0), s2 = s * s;  // ln m = 2 atanh s, |s| <= 0.172
  double series = 0.0;
  for (int k = 23; k >= 3; k -= 2) series = (series + 1.0 / k) * s2;
  return double(exponent) * 0x1.62e42fefp-1 + (double(exponent) * 0x1.473de6af278edp-34 + (2.0 * s + 2.0 * s * series));
}

struct SinCos {
  double sin, cos;
};

// sin x and cos x for |x| <= 800,000 radians (rope: position times frequency).
inline SinCos sin_cos_double(double x) {
  const double n = (x * 0x1.45f306dc9c883p-1 + kRoundDouble) - kRoundDouble;
  // pi / 2 in three parts of 33, 33 and 53 bits: n times the first two is exact for |n| < 2^20.
  const double r = ((x - n * 0x1.921fb544p0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2e037073p-69;
  const double r2 = r * r;
  double s = 1.0, c = 1.0;  // Taylor in r^2; |r| <= pi / 4, remainders below 1e-17
  for (int k = 18; k >= 2; k -= 2) {
    s = 1.0 - s * r2 / (k * (k + 1));
    c = 1.0 - c * r2 / (k * (k - 1));
  }
  s *= r;
  switch (int64_t(n) & 3) {
    case 0:
      return {s, c};
    case 1:
      return {c, -s};
    case 2:
      return {-s, -c};
    default:
      return {-c, s};
  }
}

}  // namespace perigee
