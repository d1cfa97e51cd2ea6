// How weight blocks unpack into 256-bit vectors, always in row order. A format says
//   codes(...)   bytes kOffset above their meaning: unsigned, 0..kMax, or with kSigned signed (kOffset 0)
//   scales(...)  superblocks: 16-bit scales (and mins); 8 scales lie in both halves of a W
//   kSubs        how many scales a superblock has
//   kHasMin      whether blocks have a dmin or m
// Decode and prefill use the same facts.

// 16 bytes of nibbles: the low ones, then the high ones.
PERIGEE_INLINE W nibbles16(const void* p) {
  const V v = load(p);
  return bit_and(from_halves(v, shift_right16(v, 4)), wide8(15));
}

// --- superblocks --------------------------------------------------------------------------------------------------------

// 32 bytes to 32 low and 32 high nibbles, for each quarter of a superblock.
PERIGEE_INLINE void nibbles_k4(const uint8_t qs[128], W q[8]) {
  for (int c = 0; c < 4; c++) {
    const W v = load_wide(qs + 32 * c);
    q[2 * c] = bit_and(v, wide8(15));
    q[2 * c + 1] = bit_and(shifted16<-4>(v), wide8(15));
  }
}

// The scales and mins of Q4_K and Q5_K, from the block's first 16 bytes: d, dmin, 12 packed bytes.
PERIGEE_INLINE void k4_scales(const void* block, W& scale, V& min) {
  constexpr int64_t kNone = int64_t(0x8080808080808080);
  const auto at = [](int64_t byte) { return 0x0380028001800080 + (byte << 8) * 0x0001000100010001; };  // tops of words
  const auto quarters = [](int64_t a, int64_t b, int64_t c, int64_t d) { return _mm256_set_epi64x(d, c, b, a); };
  const auto words = [](int v) { return v * int64_t(0x0001000100010001); };
  const W head = _mm256_broadcastsi128_si256(load(block));
  // Scales, then mins. Of sub-blocks 0..3 six bits are in place; 4..7 have a nibble and two bits above those six.
  const W bytes = _mm256_shuffle_epi8(head, quarters(at(4), at(12), at(8), at(12)));
  const W upper = _mm256_shuffle_epi8(head, quarters(kNone, at(4), kNone, at(8)));
  const W shifted = _mm256_mulhi_epu16(bytes, quarters(words(256), words(256), words(256), words(16)));
  const W low = bit_and(shifted, quarters(words(63), words(15), words(63), words(15)));
  const W both = merge(low, shifted16<-10>(upper), wide16(0x30));
  scale = _mm256_permute4x64_epi64(both, 0x44);
  min = high_half(both);
}

struct WideQ4_K {
  using Block = BlockQ4_K;
  static constexpr bool kSuper = true, kHasMin = true, kSigned = false;
  static constexpr int kOffset = 0, kMax = 15, kSubs = 8;

  PERIGEE_INLINE static void codes(const Block& block, W q[8]) { nibbles_k4(block.qs, q); }
  PERIGEE_INLINE static void scales(const Block& block, W& scale, V& min) { k4_scales(&block, scale, min); }
};

struct WideQ5_K {
  using Block = BlockQ5_K;
  static constexpr bool kSuper = true, kHasMin = true, kSigned = false;
  static constexpr int kOffset = 0, kMax = 31, kSubs = 8;

  PERIGEE_INLINE static void codes(const Block& block, W q[8]) {
    nibbles_k4(block.qs, q);
    const W fifths = load_wide(block.qh);
    repeat<8>([&](auto s) { q[s] = merge(q[s], shifted16<4 - s>(fifths), wide8(16)); });
  }

  PERIGEE_INLINE static void scales(const Block& block, W& scale, V& min) { k4_scales(&block, scale, min); }
};

PERIGEE_INLINE W widen_bytes(V v) { return _mm256_cvtepi8_epi16(v); }

struct WideQ6_K {
  using Block = BlockQ6_K;
  static constexpr bool kSuper = true, kHasMin = false, kSigned = false;
  static constexpr int kOffset = 32, kMax = 63, kSubs = 16;

  PERIGEE_INLINE static void codes(const Block& block, W q[8]) {
    for (int n = 0; n < 2; n++) {
      const W a = load_wide(block.ql + 64 * n), b = load_wide(block.ql + 64 * n + 32), h = load_wide(block.qh + 32 * n);
      q[4 * n] = merge(bit_and(a, wide8(15)), shifted16<4>(h), wide8(0x30));
      q[4 * n + 1] = merge(bit_and(b, wide8(15)), shifted16<2>(h), wide8(0x30));
      q[4 * n + 2] = merge(bit_and(shifted16<-4>(a), wide8(15)), h, wide8(0x30));
      q[4 * n + 3] = merge(bit_and(shifted16<-4>(b), wide8(15)), shifted16<-2>(h), wide8(0x30));
    }
  }

  PERIGEE_INLINE static void scales(const Block& block, W& scale, W&) { scale = widen_bytes(load(block.scales)); }
};

// Two-bit codes: element 32 j + l of a half in bits 2 j of byte l.
PERIGEE_INLINE void two_bits(const uint8_t qs[64], W q[8]) {
  repeat<8>([&](auto c) { q[c] = bit_and(shifted16<-2 * (c % 4)>(load_wide(qs + 32 * (c / 4))), wide8(3)); });
}

struct WideQ2_K {
  using Block = BlockQ2_K;
  static constexpr bool kSuper = true, kHasMin = true, kSigned = false;
  static constexpr int kOffset = 0, kMax = 3, kSubs = 16;

  PERIGEE_INLINE static void codes(const Block& block, W q[8]) { two_bits(block.qs, q); }

  PERIGEE_INLINE static void scales(const Block& block, W& scale, W& min) {
    const V v = load(block.scales);
    scale = widen_bytes(bit_and(v, splat8(15)));
    min = widen_bytes(bit_and(shift_right16(v, 4), splat8(15)));
  }
};

struct WideQ3_K {
  using Block = BlockQ3_K;
  static constexpr bool kSuper = true, kHasMin = false, kSigned = false;
  static constexpr int kOffset = 4, kMax = 7, kSubs = 16;

  PERIGEE_INLINE static void codes(const Block& block, W q[8]) {
    two_bits(block.qs, q);
    const W thirds = load_wide(block.hmask);
    repeat<8>([&](auto c) { q[c] = merge(q[c], shifted16<2 - c>(thirds), wide8(4)); });
  }

  PERIGEE_INLINE static void scales(const Block& block, W& scale, W&) {
    uint64_t nibbles;
    uint32_t upper;
    __builtin_memcpy(&nibbles, block.scales, 8);
    __builtin_memcpy(&upper, block.scales + 8, 4);
    const uint64_t upper01 = (upper & 0x03030303) | uint64_t(upper >> 2 & 0x03030303) << 32;
    const uint64_t upper23 = (upper >> 4 & 0x03030303) | uint64_t(upper >> 6 & 0x03030303) << 32;
    const uint64_t low = (nibbles & 0x0f0f0f0f0f0f0f0f) | upper01 << 4;
    const uint64_t high = (nibbles >> 4 & 0x0f0f0f0f0f0f0f0f) | upper23 << 4;
    scale = widen_bytes(_mm_sub_epi8(_mm_set_epi64x(int64_t(high), int64_t(low)), splat8(32)));
  }
};

struct WideIQ4_XS {
  using Block = BlockIQ4_XS;
  static constexpr bool kSuper = true, kHasMin = false, kSigned = true;
  static constexpr int kOffset = 0, kMax = 127, kSubs = 8;

  PERIGEE_INLINE static void codes(const Block& block, W q[8]) {
    for (int s = 0; s < 8; s++) q[s] = iq4_values(nibbles16(block.qs + 16 * s));
  }

  // Scale s: nibble s of scales_l, bits 2 s of scales_h. A multiplication by 2^(14 - 2 s) brings these to the word's top.
  PERIGEE_INLINE static void scales(const Block& block, W& scale, V&) {
    int32_t packed;
    __builtin_memcpy(&packed, block.scales_l, 4);
    const V bytes = _mm_cvtsi32_si128(packed);
    const V low = _mm_unpacklo_epi8(bit_and(bytes, splat8(15)), bit_and(shift_right16(bytes, 4), splat8(15)));
    const V to_top = _mm_set_epi16(1, 4, 16, 64, 256, 1024, 4096, 16384);
    const V high = shift_right16(mul16(splat16(int16_t(block.scales_h)), to_top), 14);
    const V eight = sub16(bit_or(_mm_cvtepu8_epi16(low), shift_left16(high, 4)), splat16(32));
    scale = from_halves(eight, eight);
  }
};

// --- blocks of 32 -------------------------------------------------------------------------------------------------------

template <typename BlockType, int kOff, int kLargest, bool kMin, bool kSign>
struct WideBlocks {
  using Block = BlockType;
  static constexpr bool kSuper = false, kHasMin = kMin, kSigned = kSign;
  static constexpr int kOffset = kOff, kMax = kLargest, kSubs = 1;
};

struct WideQ4_0 : WideBlocks<BlockQ4_0, 8, 15, false, false> {
  PERIGEE_INLINE static W codes(const Block& block) { return nibbles16(block.qs); }
};

struct WideQ4_1 : WideBlocks<BlockQ4_1, 0, 15, true, false> {
  PERIGEE_INLINE static W codes(const Block& block) { return nibbles16(block.qs); }
};

// Bit i of qh: whether code i has 16 more.
PERIGEE_INLINE W with_fifths(W v, const uint8_t qh[4]) {
  int32_t bits;
  __builtin_memcpy(&bits, qh, 4);
  const W byte = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  return with_sixteens(v, _mm256_shuffle_epi8(wide32(bits), byte), _mm256_set1_epi64x(int64_t(0x8040201008040201)));
}

struct WideQ5_0 : WideBlocks<BlockQ5_0, 16, 31, false, false> {
  PERIGEE_INLINE static W codes(const Block& block) { return with_fifths(nibbles16(block.qs), block.qh); }
};

struct WideQ5_1 : WideBlocks<BlockQ5_1, 0, 31, true, false> {
  PERIGEE_INLINE static W codes(const Block& block) { return with_fifths(nibbles16(block.qs), block.qh); }
};

struct WideQ8_0 : WideBlocks<BlockQ8_0, 0, 128, false, true> {
  PERIGEE_INLINE static W codes(const Block& block) { return load_wide(block.qs); }
};

struct WideIQ4_NL : WideBlocks<BlockIQ4_NL, 0, 127, false, true> {
  PERIGEE_INLINE static W codes(const Block& block) { return iq4_values(nibbles16(block.qs)); }
};
