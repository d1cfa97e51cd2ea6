// What the generic kernels share: reductions in the order of kernels.h, half conversion, activation row pointers.

// Four vectors of 4 x i32 to the four sums of their lanes.
PERIGEE_INLINE V sums_of_four(V a, V b, V c, V d) {
  const V ab = add32(zip_low32(a, b), zip_high32(a, b));
  const V cd = add32(zip_low32(c, d), zip_high32(c, d));
  return add32(zip_low64(ab, cd), zip_high64(ab, cd));
}

// Four vectors of 8 x i16 to the four sums of their lanes; lane sums of two vectors' halves must fit 16 bits.
PERIGEE_INLINE V sums_of_four16(V a, V b, V c, V d) {
  const V ab = pair_sums16(add16(zip_low32(a, b), zip_high32(a, b)));
  const V cd = pair_sums16(add16(zip_low32(c, d), zip_high32(c, d)));
  return add32(zip_low64(ab, cd), zip_high64(ab, cd));
}

// Rule 2: (l0 + l2) + (l1 + l3).
PERIGEE_INLINE float fold4(V a) {
  return (lane_float<0>(a) + lane_float<2>(a)) + (lane_float<1>(a) + lane_float<3>(a));
}

// Rule 3 for lanes 0..3, 4..7, 8..11, 12..15: l with l + 8, l + 4, l + 2, l + 1.
PERIGEE_INLINE float fold16(V a, V b, V c, V d) { return fold4(add(add(a, c), add(b, d))); }

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

// The `stride`-apart u32 (kWide) or u16 at `p` of up to four blocks, zero for those beyond `count`.
template <bool kWide>
PERIGEE_INLINE V gather_heads(const uint8_t* p, size_t stride, uint32_t count) {
  V v = zero();
  if constexpr (kWide) {
    v = load_lane32<0>(p, v);
    if (count > 1) v = load_lane32<1>(p + stride, v);
    if (count > 2) v = load_lane32<2>(p + 2 * stride, v);
    if (count > 3) v = load_lane32<3>(p + 3 * stride, v);
  } else {
    v = load_lane16<0>(p, v);
    if (count > 1) v = load_lane16<2>(p + stride, v);
    if (count > 2) v = load_lane16<4>(p + 2 * stride, v);
    if (count > 3) v = load_lane16<6>(p + 3 * stride, v);
  }
  return v;
}

PERIGEE_INLINE const uint8_t* activation(const MatmulArgs& a, uint32_t i) {
  return a.x + a.x_stride * (a.x_rows ? uint32_t(a.x_rows[i]) : i);
}
