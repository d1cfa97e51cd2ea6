// The SIMD layer (simd_wasm.h says what each operation means) in 128-bit vectors of x86 with AVX2's instructions.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "compiler.h"

namespace perigee {
namespace {

using V = __m128i;  // 16 bytes; the operations say what they are read as

PERIGEE_INLINE __m128 as_floats(V v) { return _mm_castsi128_ps(v); }
PERIGEE_INLINE V as_bits(__m128 v) { return _mm_castps_si128(v); }

// --- memory: no alignment is assumed ------------------------------------------------------------------------------------
PERIGEE_INLINE V load(const void* p) { return _mm_loadu_si128(static_cast<const V*>(p)); }
PERIGEE_INLINE void store(void* p, V v) { _mm_storeu_si128(static_cast<V*>(p), v); }
PERIGEE_INLINE V load64(const void* p) { return _mm_loadl_epi64(static_cast<const V*>(p)); }
PERIGEE_INLINE V load_splat32(const void* p) {
  float bits;
  __builtin_memcpy(&bits, p, 4);
  return as_bits(_mm_set1_ps(bits));
}
PERIGEE_INLINE V load_widen8(const void* p) { return _mm_cvtepi8_epi16(load64(p)); }     // 8 x i8 -> i16
PERIGEE_INLINE V load_widen16u(const void* p) { return _mm_cvtepu16_epi32(load64(p)); }  // 4 x u16 -> u32
PERIGEE_INLINE V load_widen16(const void* p) { return _mm_cvtepi16_epi32(load64(p)); }   // 4 x i16 -> i32
PERIGEE_INLINE V load_halves64(const void* low, const void* high) {
  return _mm_unpacklo_epi64(load64(low), load64(high));
}

template <int kLane>
PERIGEE_INLINE V load_lane32(const void* p, V v) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return _mm_insert_epi32(v, bits, kLane);
}
template <int kLane>
PERIGEE_INLINE V load_lane16(const void* p, V v) {
  int16_t bits;
  __builtin_memcpy(&bits, p, 2);
  return _mm_insert_epi16(v, bits, kLane);
}

// --- constants ----------------------------------------------------------------------------------------------------------
PERIGEE_INLINE V zero() { return _mm_setzero_si128(); }
PERIGEE_INLINE V splat8(int v) { return _mm_set1_epi8(int8_t(v)); }
PERIGEE_INLINE V splat16(int v) { return _mm_set1_epi16(int16_t(v)); }
PERIGEE_INLINE V splat32(int32_t v) { return _mm_set1_epi32(v); }
PERIGEE_INLINE V splat_float(float v) { return as_bits(_mm_set1_ps(v)); }

// --- bits and integers --------------------------------------------------------------------------------------------------
PERIGEE_INLINE V bit_and(V a, V b) { return _mm_and_si128(a, b); }
PERIGEE_INLINE V bit_or(V a, V b) { return _mm_or_si128(a, b); }
PERIGEE_INLINE V shift_left16(V a, int n) { return _mm_slli_epi16(a, n); }
PERIGEE_INLINE V shift_right16(V a, int n) { return _mm_srli_epi16(a, n); }
PERIGEE_INLINE V shift_left32(V a, int n) { return _mm_slli_epi32(a, n); }
PERIGEE_INLINE V shift_right32(V a, int n) { return _mm_srli_epi32(a, n); }
PERIGEE_INLINE V shift_right32s(V a, int n) { return _mm_srai_epi32(a, n); }
PERIGEE_INLINE V add16(V a, V b) { return _mm_add_epi16(a, b); }
PERIGEE_INLINE V sub16(V a, V b) { return _mm_sub_epi16(a, b); }
PERIGEE_INLINE V max16(V a, V b) { return _mm_max_epi16(a, b); }
PERIGEE_INLINE V mul16(V a, V b) { return _mm_mullo_epi16(a, b); }
PERIGEE_INLINE V add32(V a, V b) { return _mm_add_epi32(a, b); }
PERIGEE_INLINE V sub32(V a, V b) { return _mm_sub_epi32(a, b); }
PERIGEE_INLINE V greater32(V a, V b) { return _mm_cmpgt_epi32(a, b); }
PERIGEE_INLINE V widen8_low(V a) { return _mm_cvtepi8_epi16(a); }
PERIGEE_INLINE V widen8_high(V a) { return _mm_cvtepi8_epi16(_mm_unpackhi_epi64(a, a)); }
PERIGEE_INLINE V narrow32(V a, V b) { return _mm_packs_epi32(a, b); }
PERIGEE_INLINE V narrow16(V a, V b) { return _mm_packs_epi16(a, b); }

// i16 products, neighbours added: 4 x i32.
PERIGEE_INLINE V dot16(V a, V b) { return _mm_madd_epi16(a, b); }
PERIGEE_INLINE V pair_sums16(V a) { return _mm_madd_epi16(a, splat16(1)); }

// Products of 16 signed bytes with 16 codes 0..127, neighbours added: 8 x i16, exact (at most 2 * 128 * 127 = 32512).
PERIGEE_INLINE V dot8(V x, V codes) { return _mm_maddubs_epi16(codes, x); }
constexpr bool kFastDot8 = true;

// --- floats -------------------------------------------------------------------------------------------------------------
PERIGEE_INLINE V add(V a, V b) { return as_bits(_mm_add_ps(as_floats(a), as_floats(b))); }
PERIGEE_INLINE V sub(V a, V b) { return as_bits(_mm_sub_ps(as_floats(a), as_floats(b))); }
PERIGEE_INLINE V mul(V a, V b) { return as_bits(_mm_mul_ps(as_floats(a), as_floats(b))); }
PERIGEE_INLINE V div(V a, V b) { return as_bits(_mm_div_ps(as_floats(a), as_floats(b))); }
PERIGEE_INLINE V negate(V a) { return _mm_xor_si128(a, splat32(INT32_MIN)); }
// The instructions give their second operand where the comparison fails, also for NaN.
PERIGEE_INLINE V min_or_first(V a, V b) { return as_bits(_mm_min_ps(as_floats(b), as_floats(a))); }  // b < a ? b : a
PERIGEE_INLINE V max_or_first(V a, V b) { return as_bits(_mm_max_ps(as_floats(b), as_floats(a))); }  // a < b ? b : a
PERIGEE_INLINE V to_float(V a) { return as_bits(_mm_cvtepi32_ps(a)); }
// Exact, denormals included, whatever the modes; a signalling NaN turns quiet, as any product with it would be.
PERIGEE_INLINE V halfs_to_float(V h) { return as_bits(_mm_cvtph_ps(_mm_packus_epi32(h, h))); }
constexpr bool kFiniteHalfsPay = false;

// --- lanes --------------------------------------------------------------------------------------------------------------
PERIGEE_INLINE V zip_low16(V a, V b) { return _mm_unpacklo_epi16(a, b); }
PERIGEE_INLINE V zip_high16(V a, V b) { return _mm_unpackhi_epi16(a, b); }
PERIGEE_INLINE V zip_low32(V a, V b) { return _mm_unpacklo_epi32(a, b); }
PERIGEE_INLINE V zip_high32(V a, V b) { return _mm_unpackhi_epi32(a, b); }
PERIGEE_INLINE V zip_low64(V a, V b) { return _mm_unpacklo_epi64(a, b); }
PERIGEE_INLINE V zip_high64(V a, V b) { return _mm_unpackhi_epi64(a, b); }

template <int kLane>
PERIGEE_INLINE float lane_float(V a) {
  return __builtin_bit_cast(float, _mm_extract_epi32(a, kLane));
}

}  // namespace
}  // namespace perigee
