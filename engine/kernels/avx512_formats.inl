// How weight blocks unpack into 512-bit vectors, always in row order. A format says
//   codes(...)   bytes: unsigned, kOffset above their meaning; with kSigned they are the meaning itself
//   scales(...)  superblocks with kSub 16: 16-bit scales (and mins) of the 16 sub-blocks
//   kSubs        how many scales a superblock has
//   kHasMin      whether blocks have a dmin or m
// Decode and prefill use the same facts. Superblocks with kSub 32 (Q4_K, Q5_K) share their head: see k4_scales.

// 32 bytes in both halves.
PERIGEE_INLINE W twice(const void* p) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

// The four 128-bit quarters as pairs of equal 64-bit words. Written so that compilers see one constant.
PERIGEE_INLINE W quarters(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  return _mm512_set_epi64(int64_t(d), int64_t(d), int64_t(c), int64_t(c), int64_t(b), int64_t(b), int64_t(a),
                          int64_t(a));
}

constexpr uint64_t four16(int word) { return uint64_t(uint16_t(word)) * 0x0001000100010001; }
constexpr uint64_t eight8(int byte) { return uint64_t(uint8_t(byte)) * 0x0101010101010101; }

// A vector whose lower half holds `low` in every 16-bit word or byte, and whose upper half `high`.
PERIGEE_INLINE W halves16(int low, int high) { return quarters(four16(low), four16(low), four16(high), four16(high)); }
PERIGEE_INLINE W halves8(int low, int high) { return quarters(eight8(low), eight8(low), eight8(high), eight8(high)); }

// Low nibbles of the lower half, high nibbles of the upper.
PERIGEE_INLINE W nibble_halves(W v) {
  return _mm512_and_si512(_mm512_srlv_epi16(v, halves16(0, 4)), _mm512_set1_epi8(15));
}

// --- superblocks --------------------------------------------------------------------------------------------------------

struct WideQ4_K {
  using Block = BlockQ4_K;
  static constexpr bool kSuper = true, kHasMin = true, kSigned = false;
  static constexpr int kOffset = 0, kSub = 32, kSubs = 8;

  PERIGEE_INLINE static void codes(const Block& block, W q[4]) {
    for (int c = 0; c < 4; c++) q[c] = nibble_halves(twice(block.qs + 32 * c));
  }
};

struct WideQ5_K {
  using Block = BlockQ5_K;
  static constexpr bool kSuper = true, kHasMin = true, kSigned = false;
  static constexpr int kOffset = 0, kSub = 32, kSubs = 8;

  PERIGEE_INLINE static void codes(const Block& block, W q[4]) {
    const W fifths = twice(block.qh);
    for (int c = 0; c < 4; c++) {
      const __mmask64 fifth = _mm512_test_epi8_mask(fifths, halves8(1 << 2 * c, 2 << 2 * c));
      const W v = nibble_halves(twice(block.qs + 32 * c));
      q[c] = _mm512_mask_add_epi8(v, fifth, v, _mm512_set1_epi8(16));
    }
  }
};

struct WideQ6_K {
  using Block = BlockQ6_K;
  static constexpr bool kSuper = true, kHasMin = false, kSigned = false;
  static constexpr int kOffset = 32, kSub = 16, kSubs = 16;

  PERIGEE_INLINE static void codes(const Block& block, W q[4]) {
    for (int n = 0; n < 2; n++) {
      const W v = _mm512_loadu_si512(block.ql + 64 * n), h = twice(block.qh + 32 * n);
      q[2 * n] = join(v, _mm512_sllv_epi16(h, halves16(4, 2)));
      q[2 * n + 1] = join(_mm512_srli_epi16(v, 4), _mm512_srlv_epi16(h, halves16(0, 2)));
    }
  }

  // Bits 0..3 of `low` and 4, 5 of `high`; 0xd8: the second where the third is set, else the first.
  PERIGEE_INLINE static W join(W low, W high) {
    const W v = _mm512_ternarylogic_epi64(high, low, _mm512_set1_epi8(15), 0xd8);
    return _mm512_and_si512(v, _mm512_set1_epi8(63));
  }

  PERIGEE_INLINE static void scales(const Block& block, __m256i& scale, __m256i&) {
    scale = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.scales)));
  }
};

// Two bits of element 32 j + l in bits 2 j of byte l: 64 elements from j = 0 or 2.
PERIGEE_INLINE W pair_halves(W v, int j) {
  return _mm512_and_si512(_mm512_srlv_epi16(v, halves16(2 * j, 2 * j + 2)), _mm512_set1_epi8(3));
}

struct WideQ2_K {
  using Block = BlockQ2_K;
  static constexpr bool kSuper = true, kHasMin = true, kSigned = false;
  static constexpr int kOffset = 0, kSub = 16, kSubs = 16;

  PERIGEE_INLINE static void codes(const Block& block, W q[4]) {
    for (int c = 0; c < 4; c++) q[c] = pair_halves(twice(block.qs + 32 * (c / 2)), 2 * (c % 2));
  }

  PERIGEE_INLINE static void scales(const Block& block, __m256i& scale, __m256i& min) {
    const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.scales)));
    scale = _mm256_and_si256(v, _mm256_set1_epi16(15));
    min = _mm256_srli_epi16(v, 4);
  }
};

struct WideQ3_K {
  using Block = BlockQ3_K;
  static constexpr bool kSuper = true, kHasMin = false, kSigned = false;
  static constexpr int kOffset = 4, kSub = 16, kSubs = 16;

  PERIGEE_INLINE static void codes(const Block& block, W q[4]) {
    const W thirds = twice(block.hmask);
    for (int c = 0; c < 4; c++) {
      const __mmask64 third = _mm512_test_epi8_mask(thirds, halves8(1 << 2 * c, 2 << 2 * c));
      const W v = pair_halves(twice(block.qs + 32 * (c / 2)), 2 * (c % 2));
      q[c] = _mm512_mask_add_epi8(v, third, v, _mm512_set1_epi8(4));
    }
  }

  PERIGEE_INLINE static void scales(const Block& block, __m256i& scale, __m256i&) {
    uint64_t nibbles;
    uint32_t upper;
    __builtin_memcpy(&nibbles, block.scales, 8);
    __builtin_memcpy(&upper, block.scales + 8, 4);
    const uint64_t upper01 = (upper & 0x03030303) | uint64_t(upper >> 2 & 0x03030303) << 32;
    const uint64_t upper23 = (upper >> 4 & 0x03030303) | uint64_t(upper >> 6 & 0x03030303) << 32;
    const uint64_t low = (nibbles & 0x0f0f0f0f0f0f0f0f) | upper01 << 4;
    const uint64_t high = (nibbles >> 4 & 0x0f0f0f0f0f0f0f0f) | upper23 << 4;
    scale = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_set_epi64x(int64_t(high), int64_t(low))), _mm256_set1_epi16(32));
  }
};

// 16 bytes twice, then the next 16 twice; low nibbles of the first, high nibbles of the second of each pair.
PERIGEE_INLINE W nibble_quarters(const void* first, const void* second) {
  const W a = _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(first)));
  const W v = _mm512_mask_broadcast_i32x4(a, 0xff00, _mm_loadu_si128(static_cast<const __m128i*>(second)));
  return _mm512_and_si512(_mm512_srlv_epi16(v, quarters(0, four16(4), 0, four16(4))), _mm512_set1_epi8(15));
}

struct WideIQ4_XS {
  using Block = BlockIQ4_XS;
  static constexpr bool kSuper = true, kHasMin = false, kSigned = true;
  static constexpr int kOffset = 0, kSub = 16, kSubs = 8;  // decode has each scale twice

  PERIGEE_INLINE static void codes(const Block& block, W q[4]) {
    for (int c = 0; c < 4; c++) q[c] = iq4_values(nibble_quarters(block.qs + 32 * c, block.qs + 32 * c + 16));
  }

  PERIGEE_INLINE static void scales(const Block& block, __m256i& scale, __m256i&) {
    Codes256 codes;
    for (int s = 0; s < 8; s++) {
      const int nibble = block.scales_l[s / 2] >> 4 * (s % 2) & 15;
      codes.scale[2 * s] = codes.scale[2 * s + 1] = int8_t((nibble | (block.scales_h >> 2 * s & 3) << 4) - 32);
    }
    scale = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes.scale)));
  }
};

// --- blocks of 32, two at a time ----------------------------------------------------------------------------------------

// Bit i of the two qh: whether element i of the pair has 16 more.
PERIGEE_INLINE W with_fifths(W v, const uint8_t a[4], const uint8_t b[4]) {
  uint32_t low, high;
  __builtin_memcpy(&low, a, 4);
  __builtin_memcpy(&high, b, 4);
  return _mm512_mask_add_epi8(v, low | uint64_t(high) << 32, v, _mm512_set1_epi8(16));
}

template <typename BlockType, int kOff, bool kMin>
struct WideBlocks {
  using Block = BlockType;
  static constexpr bool kSuper = false, kHasMin = kMin, kSigned = false;
  static constexpr int kOffset = kOff, kSubs = 1;
};

struct WideQ4_0 : WideBlocks<BlockQ4_0, 8, false> {
  PERIGEE_INLINE static W codes(const Block& a, const Block& b) { return nibble_quarters(a.qs, b.qs); }
};

struct WideQ4_1 : WideBlocks<BlockQ4_1, 0, true> {
  PERIGEE_INLINE static W codes(const Block& a, const Block& b) { return nibble_quarters(a.qs, b.qs); }
};

struct WideQ5_0 : WideBlocks<BlockQ5_0, 16, false> {
  PERIGEE_INLINE static W codes(const Block& a, const Block& b) {
    return with_fifths(nibble_quarters(a.qs, b.qs), a.qh, b.qh);
  }
};

struct WideQ5_1 : WideBlocks<BlockQ5_1, 0, true> {
  PERIGEE_INLINE static W codes(const Block& a, const Block& b) {
    return with_fifths(nibble_quarters(a.qs, b.qs), a.qh, b.qh);
  }
};

struct WideQ8_0 : WideBlocks<BlockQ8_0, 128, false> {
  PERIGEE_INLINE static W codes(const Block& a, const Block& b) {
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b.qs));
    return flip_signs(_mm512_inserti64x4(twice(a.qs), high, 1));
  }
};

struct WideIQ4_NL : WideBlocks<BlockIQ4_NL, 128, false> {
  PERIGEE_INLINE static W codes(const Block& a, const Block& b) {
    return flip_signs(iq4_values(nibble_quarters(a.qs, b.qs)));
  }
};
