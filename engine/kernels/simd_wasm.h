// The SIMD layer: the operations the generic kernels are written in, here for WebAssembly's 128-bit vectors.
//
// A further back end (AVX2, NEON) gives the same names and meanings. Included inside each table's own anonymous namespace;
// PERIGEE_USE_RELAXED_DOT, defined by wasm_relaxed.cc, picks the one operation that differs.
#pragma once
#include <stdint.h>
#include <wasm_simd128.h>

#include "compiler.h"

namespace perigee {
namespace {

using V = v128_t;  // 16 bytes; the operations say what they are read as

// --- memory: no alignment is assumed ------------------------------------------------------------------------------------
PERIGEE_INLINE V load(const void* p) { return wasm_v128_load(p); }
PERIGEE_INLINE void store(void* p, V v) { wasm_v128_store(p, v); }
PERIGEE_INLINE V load_splat32(const void* p) { return wasm_v128_load32_splat(p); }
PERIGEE_INLINE V load_widen8(const void* p) { return wasm_i16x8_load8x8(p); }     // 8 x i8 -> i16
PERIGEE_INLINE V load_widen16u(const void* p) { return wasm_u32x4_load16x4(p); }  // 4 x u16 -> u32
PERIGEE_INLINE V load_widen16(const void* p) { return wasm_i32x4_load16x4(p); }   // 4 x i16 -> i32
PERIGEE_INLINE V load_halves64(const void* low, const void* high) {
  return wasm_v128_load64_lane(high, wasm_v128_load64_zero(low), 1);
}

template <int kLane>
PERIGEE_INLINE V load_lane32(const void* p, V v) {
  return wasm_v128_load32_lane(p, v, kLane);
}
template <int kLane>
PERIGEE_INLINE V load_lane16(const void* p, V v) {
  return wasm_v128_load16_lane(p, v, kLane);
}

// --- constants ----------------------------------------------------------------------------------------------------------
PERIGEE_INLINE V zero() { return wasm_i64x2_const_splat(0); }
PERIGEE_INLINE V splat8(int v) { return wasm_i8x16_splat(int8_t(v)); }
PERIGEE_INLINE V splat16(int v) { return wasm_i16x8_splat(int16_t(v)); }
PERIGEE_INLINE V splat32(int32_t v) { return wasm_i32x4_splat(v); }
PERIGEE_INLINE V splat_float(float v) { return wasm_f32x4_splat(v); }

// --- bits and integers --------------------------------------------------------------------------------------------------
PERIGEE_INLINE V bit_and(V a, V b) { return wasm_v128_and(a, b); }
PERIGEE_INLINE V bit_or(V a, V b) { return wasm_v128_or(a, b); }
PERIGEE_INLINE V shift_left16(V a, int n) { return wasm_i16x8_shl(a, uint32_t(n)); }
PERIGEE_INLINE V shift_right16(V a, int n) { return wasm_u16x8_shr(a, uint32_t(n)); }
PERIGEE_INLINE V shift_left32(V a, int n) { return wasm_i32x4_shl(a, uint32_t(n)); }
PERIGEE_INLINE V shift_right32(V a, int n) { return wasm_u32x4_shr(a, uint32_t(n)); }
PERIGEE_INLINE V shift_right32s(V a, int n) { return wasm_i32x4_shr(a, uint32_t(n)); }
PERIGEE_INLINE V add16(V a, V b) { return wasm_i16x8_add(a, b); }
PERIGEE_INLINE V sub16(V a, V b) { return wasm_i16x8_sub(a, b); }
PERIGEE_INLINE V max16(V a, V b) { return wasm_i16x8_max(a, b); }
PERIGEE_INLINE V mul16(V a, V b) { return wasm_i16x8_mul(a, b); }
PERIGEE_INLINE V add32(V a, V b) { return wasm_i32x4_add(a, b); }
PERIGEE_INLINE V sub32(V a, V b) { return wasm_i32x4_sub(a, b); }
PERIGEE_INLINE V greater32(V a, V b) { return wasm_i32x4_gt(a, b); }
PERIGEE_INLINE V widen8_low(V a) { return wasm_i16x8_extend_low_i8x16(a); }
PERIGEE_INLINE V widen8_high(V a) { return wasm_i16x8_extend_high_i8x16(a); }
PERIGEE_INLINE V narrow32(V a, V b) { return wasm_i16x8_narrow_i32x4(a, b); }
PERIGEE_INLINE V narrow16(V a, V b) { return wasm_i8x16_narrow_i16x8(a, b); }

// i16 products, neighbours added: 4 x i32.
PERIGEE_INLINE V dot16(V a, V b) { return wasm_i32x4_dot_i16x8(a, b); }
PERIGEE_INLINE V pair_sums16(V a) { return wasm_i32x4_extadd_pairwise_i16x8(a); }

// Products of 16 signed bytes with 16 codes 0..127, neighbours added: 8 x i16, exact (at most 2 * 128 * 127 = 32512).
#ifdef PERIGEE_USE_RELAXED_DOT
PERIGEE_INLINE V dot8(V x, V codes) { return wasm_i16x8_relaxed_dot_i8x16_i7x16(x, codes); }
constexpr bool kFastDot8 = true;  // cheaper than 16-bit dots
#else
constexpr bool kFastDot8 = false;
PERIGEE_INLINE V dot8(V x, V codes) {
  const V even = mul16(wasm_i16x8_shr(shift_left16(x, 8), 8), bit_and(codes, splat16(0x00ff)));
  return add16(even, mul16(wasm_i16x8_shr(x, 8), shift_right16(codes, 8)));
}
#endif

// --- floats -------------------------------------------------------------------------------------------------------------
PERIGEE_INLINE V add(V a, V b) { return wasm_f32x4_add(a, b); }
PERIGEE_INLINE V sub(V a, V b) { return wasm_f32x4_sub(a, b); }
PERIGEE_INLINE V mul(V a, V b) { return wasm_f32x4_mul(a, b); }
PERIGEE_INLINE V div(V a, V b) { return wasm_f32x4_div(a, b); }
// a * b + c where the product is exact: fused or not, as the machine has it.
#ifdef PERIGEE_USE_RELAXED_DOT
PERIGEE_INLINE V mul_add(V a, V b, V c) { return wasm_f32x4_relaxed_madd(a, b, c); }
#else
PERIGEE_INLINE V mul_add(V a, V b, V c) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), c); }
#endif
PERIGEE_INLINE V negate(V a) { return wasm_f32x4_neg(a); }
PERIGEE_INLINE V min_or_first(V a, V b) { return wasm_f32x4_pmin(a, b); }  // b < a ? b : a
PERIGEE_INLINE V max_or_first(V a, V b) { return wasm_f32x4_pmax(a, b); }  // a < b ? b : a
PERIGEE_INLINE V to_float(V a) { return wasm_f32x4_convert_i32x4(a); }

// 4 halfs, one in the low 16 bits of each lane, as half_to_float.
PERIGEE_INLINE V halfs_to_float(V h) {
  const V sign = shift_left32(bit_and(h, splat32(0x8000)), 16);
  const V magnitude = shift_left32(bit_and(h, splat32(0x7fff)), 13);
  const V special = bit_and(greater32(magnitude, splat32(0x0f7fffff)), splat32(0x7f800000));
  const V value = mul(magnitude, splat32(0x77800000));  // 2^112
  return bit_or(bit_or(value, special), sign);
}

// The same for halfs that are neither infinite nor NaN, sign-extended to 32 bits.
PERIGEE_INLINE V finite_halfs_to_float(V h) {
  return mul(bit_and(shift_left32(h, 13), splat32(int32_t(0x8fffe000))), splat32(0x77800000));
}

// --- floats at full width: rule 3's 16 lanes are 16 / kFloatLanes of these ----------------------------------------------
using F = V;
constexpr int kFloatLanes = 4;
constexpr int kTileA = 3, kTileB = 4;  // register tiles: 12 sums and 4 operands of 16 registers

PERIGEE_INLINE F load_floats(const float* p) { return load(p); }
PERIGEE_INLINE void store_floats(float* p, F v) { store(p, v); }
PERIGEE_INLINE F floats(float v) { return splat_float(v); }
PERIGEE_INLINE F float_bits(int32_t v) { return splat32(v); }
constexpr bool kFiniteHalfsPay = true;  // whether it is worth finding out that halfs are finite
template <bool kFinite>
PERIGEE_INLINE F load_halfs(const uint8_t* p) {
  if constexpr (kFinite) return finite_halfs_to_float(load_widen16(p));
  else return halfs_to_float(load_widen16u(p));
}
PERIGEE_INLINE F load_bf16(const uint8_t* p) { return shift_left32(load_widen16u(p), 16); }

// The first steps of rule 3's fold: l with l + 8, l with l + 4.
PERIGEE_INLINE V fold_to_four(const F lanes[4]) { return add(add(lanes[0], lanes[2]), add(lanes[1], lanes[3])); }

// --- lanes --------------------------------------------------------------------------------------------------------------
PERIGEE_INLINE V zip_low16(V a, V b) { return wasm_i16x8_shuffle(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
PERIGEE_INLINE V zip_high16(V a, V b) { return wasm_i16x8_shuffle(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
PERIGEE_INLINE V zip_low32(V a, V b) { return wasm_i32x4_shuffle(a, b, 0, 4, 1, 5); }
PERIGEE_INLINE V zip_high32(V a, V b) { return wasm_i32x4_shuffle(a, b, 2, 6, 3, 7); }
PERIGEE_INLINE V zip_low64(V a, V b) { return wasm_i64x2_shuffle(a, b, 0, 2); }
PERIGEE_INLINE V zip_high64(V a, V b) { return wasm_i64x2_shuffle(a, b, 1, 3); }

template <int kLane>
PERIGEE_INLINE float lane_float(V a) {
  return wasm_f32x4_extract_lane(a, kLane);
}

}  // namespace
}  // namespace perigee
