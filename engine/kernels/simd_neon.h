// The SIMD layer (simd_wasm.h says what each operation means) for 64-bit ARM: 128-bit vectors, 32 of them.
#pragma once
#include <arm_neon.h>
#include <stdint.h>

#include "compiler.h"

namespace perigee {
namespace {

using V = uint8x16_t;  // 16 bytes; the operations say what they are read as

PERIGEE_INLINE int8x16_t as8(V v) { return vreinterpretq_s8_u8(v); }
PERIGEE_INLINE int16x8_t as16(V v) { return vreinterpretq_s16_u8(v); }
PERIGEE_INLINE uint16x8_t as16u(V v) { return vreinterpretq_u16_u8(v); }
PERIGEE_INLINE int32x4_t as32(V v) { return vreinterpretq_s32_u8(v); }
PERIGEE_INLINE uint32x4_t as32u(V v) { return vreinterpretq_u32_u8(v); }
PERIGEE_INLINE uint64x2_t as64u(V v) { return vreinterpretq_u64_u8(v); }
PERIGEE_INLINE float32x4_t as_floats(V v) { return vreinterpretq_f32_u8(v); }
PERIGEE_INLINE V bits(int8x16_t v) { return vreinterpretq_u8_s8(v); }
PERIGEE_INLINE V bits(int16x8_t v) { return vreinterpretq_u8_s16(v); }
PERIGEE_INLINE V bits(uint16x8_t v) { return vreinterpretq_u8_u16(v); }
PERIGEE_INLINE V bits(int32x4_t v) { return vreinterpretq_u8_s32(v); }
PERIGEE_INLINE V bits(uint32x4_t v) { return vreinterpretq_u8_u32(v); }
PERIGEE_INLINE V bits(uint64x2_t v) { return vreinterpretq_u8_u64(v); }
PERIGEE_INLINE V bits(float32x4_t v) { return vreinterpretq_u8_f32(v); }

// --- memory: no alignment is assumed ------------------------------------------------------------------------------------
PERIGEE_INLINE V load(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
PERIGEE_INLINE void store(void* p, V v) { vst1q_u8(static_cast<uint8_t*>(p), v); }
PERIGEE_INLINE uint8x8_t load64(const void* p) { return vld1_u8(static_cast<const uint8_t*>(p)); }
PERIGEE_INLINE V load_splat32(const void* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, 4);
  return bits(vdupq_n_u32(word));
}
PERIGEE_INLINE V load_widen8(const void* p) { return bits(vmovl_s8(vreinterpret_s8_u8(load64(p)))); }
PERIGEE_INLINE V load_widen16u(const void* p) { return bits(vmovl_u16(vreinterpret_u16_u8(load64(p)))); }
PERIGEE_INLINE V load_widen16(const void* p) { return bits(vmovl_s16(vreinterpret_s16_u8(load64(p)))); }
PERIGEE_INLINE V load_halves64(const void* low, const void* high) { return vcombine_u8(load64(low), load64(high)); }

template <int kLane>
PERIGEE_INLINE V load_lane32(const void* p, V v) {
  uint32_t word;
  __builtin_memcpy(&word, p, 4);
  return bits(vsetq_lane_u32(word, as32u(v), kLane));
}
template <int kLane>
PERIGEE_INLINE V load_lane16(const void* p, V v) {
  uint16_t word;
  __builtin_memcpy(&word, p, 2);
  return bits(vsetq_lane_u16(word, as16u(v), kLane));
}

// --- constants ----------------------------------------------------------------------------------------------------------
PERIGEE_INLINE V zero() { return vdupq_n_u8(0); }
PERIGEE_INLINE V splat8(int v) { return vdupq_n_u8(uint8_t(v)); }
PERIGEE_INLINE V splat16(int v) { return bits(vdupq_n_s16(int16_t(v))); }
PERIGEE_INLINE V splat32(int32_t v) { return bits(vdupq_n_s32(v)); }
PERIGEE_INLINE V splat_float(float v) { return bits(vdupq_n_f32(v)); }

// --- bits and integers: shifts go left by a vector of counts, right by negative ones ------------------------------------
PERIGEE_INLINE V bit_and(V a, V b) { return vandq_u8(a, b); }
PERIGEE_INLINE V bit_or(V a, V b) { return vorrq_u8(a, b); }
PERIGEE_INLINE V shift_left16(V a, int n) { return bits(vshlq_u16(as16u(a), vdupq_n_s16(int16_t(n)))); }
PERIGEE_INLINE V shift_right16(V a, int n) { return shift_left16(a, -n); }
PERIGEE_INLINE V shift_left32(V a, int n) { return bits(vshlq_u32(as32u(a), vdupq_n_s32(n))); }
PERIGEE_INLINE V shift_right32(V a, int n) { return shift_left32(a, -n); }
PERIGEE_INLINE V shift_right32s(V a, int n) { return bits(vshlq_s32(as32(a), vdupq_n_s32(-n))); }
PERIGEE_INLINE V add16(V a, V b) { return bits(vaddq_s16(as16(a), as16(b))); }
PERIGEE_INLINE V sub16(V a, V b) { return bits(vsubq_s16(as16(a), as16(b))); }
PERIGEE_INLINE V max16(V a, V b) { return bits(vmaxq_s16(as16(a), as16(b))); }
PERIGEE_INLINE V mul16(V a, V b) { return bits(vmulq_s16(as16(a), as16(b))); }
PERIGEE_INLINE V add32(V a, V b) { return bits(vaddq_s32(as32(a), as32(b))); }
PERIGEE_INLINE V sub32(V a, V b) { return bits(vsubq_s32(as32(a), as32(b))); }
PERIGEE_INLINE V greater32(V a, V b) { return bits(vcgtq_s32(as32(a), as32(b))); }
PERIGEE_INLINE V widen8_low(V a) { return bits(vmovl_s8(vget_low_s8(as8(a)))); }
PERIGEE_INLINE V widen8_high(V a) { return bits(vmovl_high_s8(as8(a))); }
PERIGEE_INLINE V narrow32(V a, V b) { return bits(vqmovn_high_s32(vqmovn_s32(as32(a)), as32(b))); }
PERIGEE_INLINE V narrow16(V a, V b) { return bits(vqmovn_high_s16(vqmovn_s16(as16(a)), as16(b))); }

// i16 products, neighbours added: 4 x i32.
PERIGEE_INLINE V dot16(V a, V b) {
  const int32x4_t low = vmull_s16(vget_low_s16(as16(a)), vget_low_s16(as16(b)));
  return bits(vpaddq_s32(low, vmull_high_s16(as16(a), as16(b))));
}
PERIGEE_INLINE V pair_sums16(V a) { return bits(vpaddlq_s16(as16(a))); }

// Products of 16 signed bytes with 16 codes 0..127, neighbours added: 8 x i16, exact (at most 2 * 128 * 127 = 32512).
PERIGEE_INLINE V dot8(V x, V codes) {
  const int16x8_t low = vmull_s8(vget_low_s8(as8(x)), vget_low_s8(as8(codes)));
  return bits(vpaddq_s16(low, vmull_high_s8(as8(x), as8(codes))));
}
constexpr bool kFastDot8 = true;

// --- floats -------------------------------------------------------------------------------------------------------------
PERIGEE_INLINE V add(V a, V b) { return bits(vaddq_f32(as_floats(a), as_floats(b))); }
PERIGEE_INLINE V sub(V a, V b) { return bits(vsubq_f32(as_floats(a), as_floats(b))); }
PERIGEE_INLINE V mul(V a, V b) { return bits(vmulq_f32(as_floats(a), as_floats(b))); }
PERIGEE_INLINE V div(V a, V b) { return bits(vdivq_f32(as_floats(a), as_floats(b))); }
PERIGEE_INLINE V mul_add(V a, V b, V c) { return bits(vfmaq_f32(as_floats(c), as_floats(a), as_floats(b))); }
PERIGEE_INLINE V negate(V a) { return bits(vnegq_f32(as_floats(a))); }
PERIGEE_INLINE V min_or_first(V a, V b) { return vbslq_u8(bits(vcltq_f32(as_floats(b), as_floats(a))), b, a); }
PERIGEE_INLINE V max_or_first(V a, V b) { return vbslq_u8(bits(vcltq_f32(as_floats(a), as_floats(b))), b, a); }
PERIGEE_INLINE V to_float(V a) { return bits(vcvtq_f32_s32(as32(a))); }
// Exact, denormals included; a signalling NaN turns quiet, as any product with it would be.
PERIGEE_INLINE V halfs_to_float(V h) { return bits(vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(as32u(h))))); }

using F = V;
constexpr int kFloatLanes = 4;
constexpr int kTileA = 4, kTileB = 4;  // 16 sums and 8 operands of 32 registers

PERIGEE_INLINE F load_floats(const float* p) { return bits(vld1q_f32(p)); }
PERIGEE_INLINE void store_floats(float* p, F v) { vst1q_f32(p, as_floats(v)); }
PERIGEE_INLINE F floats(float v) { return splat_float(v); }
PERIGEE_INLINE F float_bits(int32_t v) { return splat32(v); }
constexpr bool kFiniteHalfsPay = false;
template <bool>
PERIGEE_INLINE F load_halfs(const uint8_t* p) {
  return bits(vcvt_f32_f16(vreinterpret_f16_u8(load64(p))));
}
PERIGEE_INLINE F load_bf16(const uint8_t* p) { return shift_left32(load_widen16u(p), 16); }

PERIGEE_INLINE V fold_to_four(const F lanes[4]) { return add(add(lanes[0], lanes[2]), add(lanes[1], lanes[3])); }

// --- lanes --------------------------------------------------------------------------------------------------------------
PERIGEE_INLINE V zip_low16(V a, V b) { return bits(vzip1q_u16(as16u(a), as16u(b))); }
PERIGEE_INLINE V zip_high16(V a, V b) { return bits(vzip2q_u16(as16u(a), as16u(b))); }
PERIGEE_INLINE V zip_low32(V a, V b) { return bits(vzip1q_u32(as32u(a), as32u(b))); }
PERIGEE_INLINE V zip_high32(V a, V b) { return bits(vzip2q_u32(as32u(a), as32u(b))); }
PERIGEE_INLINE V zip_low64(V a, V b) { return bits(vzip1q_u64(as64u(a), as64u(b))); }
PERIGEE_INLINE V zip_high64(V a, V b) { return bits(vzip2q_u64(as64u(a), as64u(b))); }

template <int kLane>
PERIGEE_INLINE float lane_float(V a) {
  return vgetq_lane_f32(as_floats(a), kLane);
}

}  // namespace
}  // namespace perigee
