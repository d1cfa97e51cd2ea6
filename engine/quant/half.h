// IEEE half and bfloat16, exactly, in integer arithmetic: every value including denormals, infinities and NaNs.
#pragma once
#include <stdint.h>

namespace perigee {

inline float bits_to_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t float_to_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

inline float bf16_to_float(uint16_t b) { return bits_to_float(uint32_t(b) << 16); }

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13;  // the half's exponent and mantissa in a float's places
  if (magnitude >= 0x0f800000) return bits_to_float(sign | 0x70000000 | magnitude);  // exponent 31: infinity, NaN
  // The exponents' biases differ by 112; the product is exact, and lifts half denormals to normal floats.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude) * 0x1p112f));
}

// Round to nearest, ties to even; beyond 65504 (rounded) infinity; NaN stays NaN.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x47800000) return uint16_t(sign | 0x7c00);  // >= 2^16
  if (magnitude < 0x38800000) {                                 // < 2^-14: a half denormal
    // Adding 0.5 puts the half's last place, 2^-24, at the float's last place: the addition does the rounding.
    return uint16_t(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000));
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0x0fff + (magnitude >> 13 & 1);
  return uint16_t(sign | rounded >> 13);
}

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace perigee
