// How the fast formats unpack into vectors. A format says
//   kMax          largest code; codes are unsigned, value = scale * (code - kOffset)
//   codes(...)    code vectors in registers, from the block as stored
// and a superblock format also
//   kSub          elements per scale, 16 or 32
//   first, second where the chunk's two runs of 32 codes lie in the row
//   scales(...)   16-bit scales (and mins), in row order
// The type's other facts (block struct, has a min) serve decode and prefill alike.

struct FormatQ4_0 {
  using Block = BlockQ4_0;
  static constexpr int kOffset = 8, kMax = 15;

  PERIGEE_INLINE static void codes(const Block& block, V q[2]) {
    const V v = load(block.qs);
    q[0] = bit_and(v, splat8(15));
    q[1] = bit_and(shift_right16(v, 4), splat8(15));
  }
};

struct FormatQ5_0 {
  using Block = BlockQ5_0;
  static constexpr int kOffset = 16, kMax = 31;

  PERIGEE_INLINE static void codes(const Block& block, V q[2]) {
    const V v = load(block.qs);
    const V qh = load_splat32(block.qh);
    q[0] = bit_or(bit_and(v, splat8(15)), bit_and(mask_of_bits<0>(qh), splat8(16)));
    q[1] = bit_or(bit_and(shift_right16(v, 4), splat8(15)), bit_and(mask_of_bits<2>(qh), splat8(16)));
  }
};

// Signed codes of the full byte: 16-bit products only.
struct FormatQ8_0 {
  using Block = BlockQ8_0;
  static constexpr int kOffset = 0;
};

// The scales and mins of Q4_K and Q5_K: bytes 0..7 scales, 8..15 mins. Reads 4 bytes past `packed`, inside the block.
PERIGEE_INLINE V scales_k4(const uint8_t* packed) {
  const V v = load(packed);
  const V upper = bit_and(shift_right16(v, 2), splat8(0x30));  // top bits of scales 4..7 | of mins 4..7 | - | -
  const V low = bit_and(v, splat8(15)), high = bit_and(shift_right16(v, 4), splat8(15));
  return zip_low32(bit_and(v, splat8(63)), bit_or(zip_high32(low, high), upper));
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

  PERIGEE_INLINE static void scales(const Block& block, V& scale, V& min) {
    const V both = scales_k4(block.scales);
    scale = widen8_low(both);
    min = widen8_high(both);
  }
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

  PERIGEE_INLINE static void scales(const Block& block, V& scale, V& min) {
    const V both = scales_k4(block.scales);
    scale = widen8_low(both);
    min = widen8_high(both);
  }
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
