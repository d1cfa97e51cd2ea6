// The integer vector of the AVX-512 products, and the operations that columns.inl is written in.

using W = __m512i;                  // 64 bytes
constexpr uint32_t kLaneRows = 16;  // weight rows along a vector, 32 bits each
constexpr uint32_t kWideTile = 6;   // activation rows that meet a panel at a time

PERIGEE_INLINE W bit_and(W a, W b) { return _mm512_and_si512(a, b); }
PERIGEE_INLINE W bit_or(W a, W b) { return _mm512_or_si512(a, b); }
// v | (bits & mask)
PERIGEE_INLINE W merge(W v, W bits, W mask) { return _mm512_ternarylogic_epi64(v, bits, mask, 0xf8); }
PERIGEE_INLINE W wide8(int v) { return _mm512_set1_epi8(char(v)); }
PERIGEE_INLINE W wide32(int v) { return _mm512_set1_epi32(v); }
PERIGEE_INLINE W sub8(W a, W b) { return _mm512_sub_epi8(a, b); }
PERIGEE_INLINE W sub32(W a, W b) { return _mm512_sub_epi32(a, b); }
PERIGEE_INLINE W shifted_right(W v, int n) { return _mm512_srl_epi32(v, _mm_cvtsi32_si128(n)); }
PERIGEE_INLINE W signed_top_byte(W v) { return _mm512_srai_epi32(v, 24); }

template <int kBits>  // 32-bit lanes, to the left where positive
PERIGEE_INLINE W shifted(W v) {
  if constexpr (kBits >= 0) return _mm512_slli_epi32(v, kBits);
  else return _mm512_srli_epi32(v, -kBits);
}

// Within each 128-bit quarter.
PERIGEE_INLINE W zip_low32(W a, W b) { return _mm512_unpacklo_epi32(a, b); }
PERIGEE_INLINE W zip_high32(W a, W b) { return _mm512_unpackhi_epi32(a, b); }
PERIGEE_INLINE W zip_low64(W a, W b) { return _mm512_unpacklo_epi64(a, b); }
PERIGEE_INLINE W zip_high64(W a, W b) { return _mm512_unpackhi_epi64(a, b); }

// The 16 bytes at `offset` of rows 0, 4, 8, 12.
PERIGEE_INLINE W every_fourth(const uint8_t* const row[kLaneRows], size_t offset) {
  W v = _mm512_castsi128_si512(load(row[0] + offset));
  v = _mm512_inserti32x4(v, load(row[4] + offset), 1);
  v = _mm512_inserti32x4(v, load(row[8] + offset), 2);
  return _mm512_inserti32x4(v, load(row[12] + offset), 3);
}

// In each quarter the bytes that the two words index.
PERIGEE_INLINE W shuffle_bytes(W v, int64_t low, int64_t high) {
  return _mm512_shuffle_epi8(v, _mm512_set_epi64(high, low, high, low, high, low, high, low));
}

// v + 16 in the bytes where `bits` has the mask's one bit.
PERIGEE_INLINE W with_sixteens(W v, W bits, W mask) {
  return _mm512_mask_add_epi8(v, _mm512_test_epi8_mask(bits, mask), v, wide8(16));
}

// The half in the low 16 bits of each lane.
PERIGEE_INLINE F low_halfs(W v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }

PERIGEE_INLINE W iq4_values(W nibbles) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(load(kIQ4Values)), nibbles);
}

// Signed bytes as unsigned ones, 128 above their meaning.
PERIGEE_INLINE W flip_signs(W v) { return _mm512_xor_si512(v, wide8(0x80)); }

// How a panel keeps the signed codes of blocks of 32, and scales.
PERIGEE_INLINE W kept_signed(W codes) { return flip_signs(codes); }
PERIGEE_INLINE W kept_scale(W scale) { return scale; }
