// What the generic kernels share: reductions in the order of kernels.h, activation row pointers.

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

constexpr int kLaneVectors = 16 / kFloatLanes;  // vector g holds rule 3's lanes kFloatLanes * g and following

// Rule 3's fold: l with l + 8, l + 4, l + 2, l + 1.
PERIGEE_INLINE float fold16(const F lanes[kLaneVectors]) { return fold4(fold_to_four(lanes)); }

// The last two steps of that fold for four sums at once.
PERIGEE_INLINE V fold4_each(V a, V b, V c, V d) {
  const V ac = add(zip_low64(a, c), zip_high64(a, c));  // a0 + a2, a1 + a3, c0 + c2, c1 + c3
  const V bd = add(zip_low64(b, d), zip_high64(b, d));
  const V low = zip_low32(ac, bd), high = zip_high32(ac, bd);
  return add(zip_low64(low, high), zip_high64(low, high));
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

// Calls body with the constants kFrom .. kCount - 1.
template <int kCount, int kFrom = 0, typename Body>
PERIGEE_INLINE void repeat(Body body) {
  if constexpr (kFrom < kCount) {
    body(std::integral_constant<int, kFrom>());
    repeat<kCount, kFrom + 1>(body);
  }
}
