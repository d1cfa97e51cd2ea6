// The integer vector of the AVX2 products, and the operations that columns.inl is written in.

using W = __m256i;                 // 32 bytes
constexpr uint32_t kLaneRows = 8;  // weight rows along a vector, 32 bits each
constexpr uint32_t kWideTile = 4;  // activation rows that meet a panel at a time

PERIGEE_INLINE W load_wide(const void* p) { return _mm256_loadu_si256(static_cast<const W*>(p)); }
PERIGEE_INLINE W bit_and(W a, W b) { return _mm256_and_si256(a, b); }
PERIGEE_INLINE W bit_or(W a, W b) { return _mm256_or_si256(a, b); }
// v | (bits & mask)
PERIGEE_INLINE W merge(W v, W bits, W mask) { return bit_or(v, bit_and(bits, mask)); }
PERIGEE_INLINE W wide_zero() { return _mm256_setzero_si256(); }
PERIGEE_INLINE W wide8(int v) { return _mm256_set1_epi8(char(v)); }
PERIGEE_INLINE W wide16(int v) { return _mm256_set1_epi16(int16_t(v)); }
PERIGEE_INLINE W wide32(int v) { return _mm256_set1_epi32(v); }
PERIGEE_INLINE W add16(W a, W b) { return _mm256_add_epi16(a, b); }
PERIGEE_INLINE W add32(W a, W b) { return _mm256_add_epi32(a, b); }
// A sum that compilers add up here and not in some other order: g++ would make trees that need more registers than there are.
PERIGEE_INLINE W in_order(W sum) {
  __asm__("" : "+x"(sum));
  return sum;
}
PERIGEE_INLINE W sub8(W a, W b) { return _mm256_sub_epi8(a, b); }
PERIGEE_INLINE W sub32(W a, W b) { return _mm256_sub_epi32(a, b); }
PERIGEE_INLINE W dot16(W a, W b) { return _mm256_madd_epi16(a, b); }
PERIGEE_INLINE W pair_sums16(W a) { return _mm256_madd_epi16(a, wide16(1)); }
PERIGEE_INLINE W shifted_right(W v, int n) { return _mm256_srli_epi32(v, n); }
PERIGEE_INLINE W signed_top_byte(W v) { return _mm256_srai_epi32(v, 24); }

template <int kBits>  // 32-bit lanes, to the left where positive
PERIGEE_INLINE W shifted(W v) {
  if constexpr (kBits >= 0) return _mm256_slli_epi32(v, kBits);
  else return _mm256_srli_epi32(v, -kBits);
}

template <int kBits>  // 16-bit lanes
PERIGEE_INLINE W shifted16(W v) {
  if constexpr (kBits >= 0) return _mm256_slli_epi16(v, kBits);
  else return _mm256_srli_epi16(v, -kBits);
}

// Products of 32 signed bytes with 32 codes, neighbours added: 16 x i16, exact. Codes are 0..63; or signed, then it is
// |code| * (x with the code's sign), at most 2 * 128 * 127.
template <bool kSigned>
PERIGEE_INLINE W dot8(W x, W codes) {
  if constexpr (kSigned) return _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
  else return _mm256_maddubs_epi16(codes, x);
}

// Within each 128-bit half.
PERIGEE_INLINE W zip_low32(W a, W b) { return _mm256_unpacklo_epi32(a, b); }
PERIGEE_INLINE W zip_high32(W a, W b) { return _mm256_unpackhi_epi32(a, b); }
PERIGEE_INLINE W zip_low64(W a, W b) { return _mm256_unpacklo_epi64(a, b); }
PERIGEE_INLINE W zip_high64(W a, W b) { return _mm256_unpackhi_epi64(a, b); }

PERIGEE_INLINE W from_halves(V low, V high) { return _mm256_set_m128i(high, low); }
PERIGEE_INLINE V low_half(W v) { return _mm256_castsi256_si128(v); }
PERIGEE_INLINE V high_half(W v) { return _mm256_extracti128_si256(v, 1); }

// The 16 bytes at `offset` of rows 0 and 4.
PERIGEE_INLINE W every_fourth(const uint8_t* const row[kLaneRows], size_t offset) {
  return from_halves(load(row[0] + offset), load(row[4] + offset));
}

// In each half the bytes that the two words index.
PERIGEE_INLINE W shuffle_bytes(W v, int64_t low, int64_t high) {
  return _mm256_shuffle_epi8(v, _mm256_set_epi64x(high, low, high, low));
}

// v + 16, v below 16, in the bytes where `bits` has the mask's one bit.
PERIGEE_INLINE W with_sixteens(W v, W bits, W mask) {
  return merge(v, _mm256_cmpeq_epi8(bit_and(bits, mask), mask), wide8(16));
}

// The half in the low 16 bits of each lane.
PERIGEE_INLINE F low_halfs(W v) {
  const W halfs = bit_and(v, wide32(0xffff));
  return _mm256_cvtph_ps(_mm_packus_epi32(low_half(halfs), high_half(halfs)));
}

PERIGEE_INLINE W iq4_values(W nibbles) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load(kIQ4Values)), nibbles);
}

// How a panel keeps the signed codes of blocks of 32, and scales: twice as 16 bits.
PERIGEE_INLINE W kept_signed(W codes) { return codes; }
PERIGEE_INLINE W kept_scale(W scale) { return _mm256_blend_epi16(scale, shifted<16>(scale), 0xaa); }
