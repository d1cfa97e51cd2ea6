// The SIMD layer for AVX2: 128-bit integers, floats eight at a time.
#pragma once
#include "simd_x86.h"

namespace perigee {
namespace {

using F = __m256;
constexpr int kFloatLanes = 8;
constexpr int kTileA = 3, kTileB = 4;  // 12 sums and 4 operands fill 16 registers; the last operand comes from memory

PERIGEE_INLINE __m256i as_integers(F v) { return _mm256_castps_si256(v); }
PERIGEE_INLINE F from_integers(__m256i v) { return _mm256_castsi256_ps(v); }

PERIGEE_INLINE F load_floats(const float* p) { return _mm256_loadu_ps(p); }
PERIGEE_INLINE void store_floats(float* p, F v) { _mm256_storeu_ps(p, v); }
PERIGEE_INLINE F floats(float v) { return _mm256_set1_ps(v); }
PERIGEE_INLINE F float_bits(int32_t v) { return from_integers(_mm256_set1_epi32(v)); }
template <bool>
PERIGEE_INLINE F load_halfs(const uint8_t* p) {
  return _mm256_cvtph_ps(load(p));
}
PERIGEE_INLINE F load_bf16(const uint8_t* p) {
  return from_integers(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load(p)), 16));
}

PERIGEE_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
PERIGEE_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
PERIGEE_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
PERIGEE_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
PERIGEE_INLINE F mul_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
PERIGEE_INLINE F negate(F a) { return _mm256_xor_ps(a, floats(-0.0f)); }
PERIGEE_INLINE F min_or_first(F a, F b) { return _mm256_min_ps(b, a); }
PERIGEE_INLINE F max_or_first(F a, F b) { return _mm256_max_ps(b, a); }
PERIGEE_INLINE F add32(F a, F b) { return from_integers(_mm256_add_epi32(as_integers(a), as_integers(b))); }
PERIGEE_INLINE F sub32(F a, F b) { return from_integers(_mm256_sub_epi32(as_integers(a), as_integers(b))); }
PERIGEE_INLINE F shift_left32(F a, int n) { return from_integers(_mm256_slli_epi32(as_integers(a), n)); }
PERIGEE_INLINE F shift_right32s(F a, int n) { return from_integers(_mm256_srai_epi32(as_integers(a), n)); }

PERIGEE_INLINE V fold_to_four(const F lanes[2]) {
  const F sum = add(lanes[0], lanes[1]);
  return as_bits(_mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1)));
}

}  // namespace
}  // namespace perigee
