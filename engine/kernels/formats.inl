// How the fast formats unpack into vectors. A format says
//   kMax          largest code; codes are unsigned, value = scale * (code - kOffset)
//   kHasMin       whether blocks have a dmin
//   codes(...)    code vectors in registers, from the block as stored
// and a superblock format also
//   kSub          elements per scale, 16 or 32
//   first, second where the chunk's two runs of 32 codes lie in the row
//   scales(...)   16-bit scales (and mins), in row order
// Decode and prefill use the same facts.

struct FormatQ4_0 {
  using Block = BlockQ4_0;
  static constexpr int kOffset = 8, kMax = 15;
  static constexpr bool kHasMin = false;

  PERIGEE_INLINE static void codes(const Block& block, V q[2]) {
    const V v = load(block.qs);
    q[0] = bit_and(v, splat8(15));
    q[1] = bit_and(shift_right16(v, 4), splat8(15));
  }
};

// Byte j of entry i: 16 where bit j of i is set. A fifth bit per byte by loads, which decode has to spare.
struct FifthBits {
  uint64_t entry[256];

  constexpr FifthBits() : entry() {
    for (int i = 0; i < 256; i++)
      for (int j = 0; j < 8; j++) entry[i] |= uint64_t(i >> j & 1) << (8 * j + 4);
  }
};
constexpr FifthBits kFifthBits;

struct FormatQ5_0 {
  using Block = BlockQ5_0;
  static constexpr int kOffset = 16, kMax = 31;
  static constexpr bool kHasMin = false;

  PERIGEE_INLINE static V fifth(uint8_t low, uint8_t high) {
    return load_halves64(&kFifthBits.entry[low], &kFifthBits.entry[high]);
  }

  PERIGEE_INLINE static void codes(const Block& block, V q[2]) {
    const V v = load(block.qs);
    q[0] = bit_or(bit_and(v, splat8(15)), fifth(block.qh[0], block.qh[1]));
    q[1] = bit_or(bit_and(shift_right16(v, 4), splat8(15)), fifth(block.qh[2], block.qh[3]));
  }
};

// Signed codes of the full byte: 16-bit products only.
struct FormatQ8_0 {
  using Block = BlockQ8_0;
  static constexpr int kOffset = 0;
  static constexpr bool kHasMin = false;
};

// The scales and mins of Q4_K and Q5_K, as 16 bits. Unpacked in integer registers: decode is bound by vector instructions.
PERIGEE_INLINE void scales_k4(const uint8_t packed[12], V& scale, V& min) {
  uint32_t a[3];
  __builtin_memcpy(a, packed, 12);
  const uint32_t scale_high = (a[2] & 0x0f0f0f0f) | (a[0] >> 2 & 0x30303030);
  const uint32_t min_high = (a[2] >> 4 & 0x0f0f0f0f) | (a[1] >> 2 & 0x30303030);
  const uint64_t bytes[2] = {(a[0] & 0x3f3f3f3f) | uint64_t(scale_high) << 32, (a[1] & 0x3f3f3f3f) | uint64_t(min_high)
                                                                                                         << 32};
  scale = load_widen8(&bytes[0]);
  min = load_widen8(&bytes[1]);
}

// 32 bytes to the 32 low nibbles, then the 32 high ones.
PERIGEE_INLINE void nibbles(const uint8_t* qs, V q[4]) {
  const V a = load(qs), b = load(qs + 16);
  q[0] = bit_and(a, splat8(15));
  q[1] = bit_and(b, splat8(15));
  q[2] = bit_and(shift_right16(a, 4), splat8(15));
  q[3] = bit_and(shift_right16(b, 4), splat8(15));
}

struct FormatQ4_K {
  using Block = BlockQ4_K;
  static constexpr int kOffset = 0, kMax = 15, kSub = 32;
  static constexpr bool kHasMin = true;
  static constexpr int first(int chunk) { return 64 * chunk; }
  static constexpr int second(int chunk) { return 64 * chunk + 32; }

  PERIGEE_INLINE static void codes(const Block& block, int chunk, V q[4]) { nibbles(block.qs + 32 * chunk, q); }

  PERIGEE_INLINE static void scales(const Block& block, V& scale, V& min) { scales_k4(block.scales, scale, min); }
};

struct FormatQ5_K {
  using Block = BlockQ5_K;
  static constexpr int kOffset = 0, kMax = 31, kSub = 32;
  static constexpr bool kHasMin = true;
  static constexpr int first(int chunk) { return 64 * chunk; }
  static constexpr int second(int chunk) { return 64 * chunk + 32; }

  // Bit `bit` of every byte of qh, moved to 0x10.
  PERIGEE_INLINE static V fifth(V qh, int bit) {
    return bit_and(bit <= 4 ? shift_left16(qh, 4 - bit) : shift_right16(qh, bit - 4), splat8(16));
  }

  PERIGEE_INLINE static void codes(const Block& block, int chunk, V q[4]) {
    nibbles(block.qs + 32 * chunk, q);
    const V a = load(block.qh), b = load(block.qh + 16);
    q[0] = bit_or(q[0], fifth(a, 2 * chunk));
    q[1] = bit_or(q[1], fifth(b, 2 * chunk));
    q[2] = bit_or(q[2], fifth(a, 2 * chunk + 1));
    q[3] = bit_or(q[3], fifth(b, 2 * chunk + 1));
  }

  PERIGEE_INLINE static void scales(const Block& block, V& scale, V& min) { scales_k4(block.scales, scale, min); }
};

struct FormatQ6_K {
  using Block = BlockQ6_K;
  static constexpr int kOffset = 32, kMax = 63, kSub = 16;
  static constexpr bool kHasMin = false;
  static constexpr int first(int chunk) { return 128 * (chunk / 2) + 32 * (chunk % 2); }
  static constexpr int second(int chunk) { return first(chunk) + 64; }

  PERIGEE_INLINE static void codes(const Block& block, int chunk, V q[4]) {
    const int n = chunk / 2, odd = chunk % 2;
    const V a = load(block.ql + 64 * n + 32 * odd), b = load(block.ql + 64 * n + 32 * odd + 16);
    const V ha = load(block.qh + 32 * n), hb = load(block.qh + 32 * n + 16);
    // Element 32 j + l has bits 2j, 2j + 1 of qh; j = odd for the low and odd + 2 for the high nibbles.
    q[0] = bit_or(bit_and(a, splat8(15)), bit_and(shift_left16(ha, odd ? 2 : 4), splat8(0x30)));
    q[1] = bit_or(bit_and(b, splat8(15)), bit_and(shift_left16(hb, odd ? 2 : 4), splat8(0x30)));
    q[2] = bit_or(bit_and(shift_right16(a, 4), splat8(15)), bit_and(odd ? shift_right16(ha, 2) : ha, splat8(0x30)));
    q[3] = bit_or(bit_and(shift_right16(b, 4), splat8(15)), bit_and(odd ? shift_right16(hb, 2) : hb, splat8(0x30)));
  }

  PERIGEE_INLINE static void scales(const Block& block, V& low, V& high) {
    const V scale = load(block.scales);
    low = widen8_low(scale);
    high = widen8_high(scale);
  }
};
