// The SIMD layer for AVX-512: 128-bit integers, floats sixteen at a time.
#pragma once
#include "simd_x86.h"

namespace perigee {
namespace {

using F = __m512;
constexpr int kFloatLanes = 16;
constexpr int kTileA = 4, kTileB = 4;  // 16 sums and 8 operands of 32 registers: half a load per product

PERIGEE_INLINE __m512i as_integers(F v) { return _mm512_castps_si512(v); }
PERIGEE_INLINE F from_integers(__m512i v) { return _mm512_castsi512_ps(v); }

PERIGEE_INLINE F load_floats(const float* p) { return _mm512_loadu_ps(p); }
PERIGEE_INLINE void store_floats(float* p, F v) { _mm512_storeu_ps(p, v); }
PERIGEE_INLINE F floats(float v) { return _mm512_set1_ps(v); }
PERIGEE_INLINE F float_bits(int32_t v) { return from_integers(_mm512_set1_epi32(v)); }
PERIGEE_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
template <bool>
PERIGEE_INLINE F load_halfs(const uint8_t* p) {
  return _mm512_cvtph_ps(load256(p));
}
PERIGEE_INLINE F load_bf16(const uint8_t* p) {
  return from_integers(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16));
}

PERIGEE_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
PERIGEE_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
PERIGEE_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
PERIGEE_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
PERIGEE_INLINE F mul_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
PERIGEE_INLINE F negate(F a) { return _mm512_xor_ps(a, floats(-0.0f)); }
PERIGEE_INLINE F min_or_first(F a, F b) { return _mm512_min_ps(b, a); }
PERIGEE_INLINE F max_or_first(F a, F b) { return _mm512_max_ps(b, a); }
PERIGEE_INLINE F add32(F a, F b) { return from_integers(_mm512_add_epi32(as_integers(a), as_integers(b))); }
PERIGEE_INLINE F sub32(F a, F b) { return from_integers(_mm512_sub_epi32(as_integers(a), as_integers(b))); }
PERIGEE_INLINE F shift_left32(F a, int n) { return from_integers(_mm512_slli_epi32(as_integers(a), unsigned(n))); }
PERIGEE_INLINE F shift_right32s(F a, int n) { return from_integers(_mm512_srai_epi32(as_integers(a), unsigned(n))); }

PERIGEE_INLINE V fold_to_four(const F lanes[1]) {
  const __m256 upper = _mm512_extractf32x8_ps(lanes[0], 1);
  const __m256 sum = _mm256_add_ps(_mm512_castps512_ps256(lanes[0]), upper);
  return as_bits(_mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1)));
}

}  // namespace
}  // namespace perigee
