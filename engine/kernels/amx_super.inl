// Superblocks to tiles. code * scale does not fit a byte, so it is held as two byte planes, and
// isum = low plane's sum + (high plane's sum << kShift), which is exact:
//   Q4_K Q5_K         code * (scale & 7) and code * (scale >> 3), at most 31 * 7: unsigned bytes, kShift 3
//   Q3_K Q6_K IQ4_XS  the two bytes of (code - offset) * scale, the upper one signed, kShift 8
//   Q2_K              code * scale itself, at most 3 * 15: one plane
// kMins: mins of a superblock, 0 where the type has none.

// Both planes of Q4_K and Q5_K: a 16-bit product by a scale's three bits multiplies two bytes, neither overflowing.
struct ScalesK4 {
  V16 low[8], high[8];  // per sub-block, as 16 bits

  // From the 16 bytes of d, dmin and scales.
  PERIGEE_INLINE void take(const V16 head[4], SuperPanel& out) {
    out.d = low_halfs(head[0]);
    out.dmin = high_halfs(head[0]);
    const V16 scales[2] = {and_splat(head[1], 0x3f3f3f3f),
                           or_masked(low_nibbles(head[3]), _mm512_srli_epi32(head[1], 2), 0x30303030)};
    const V16 mins[2] = {and_splat(head[2], 0x3f3f3f3f),
                         or_masked(high_nibbles(head[3]), _mm512_srli_epi32(head[2], 2), 0x30303030)};
    for (int i = 0; i < 2; i++) {
      const V16 low3 = and_splat(scales[i], 0x07070707), high3 = and_splat(_mm512_srli_epi32(scales[i], 3), 0x07070707);
      for (uint32_t s = 0; s < 4; s++) {
        low[4 * i + s] = pick(low3, 0x80008000 | s << 16 | s);
        high[4 * i + s] = pick(high3, 0x80008000 | s << 16 | s);
      }
      out.min[2 * i] = pick(mins[i], 0x80018000);
      out.min[2 * i + 1] = pick(mins[i], 0x80038002);
    }
  }

  PERIGEE_INLINE void put(V16 codes, int sub, int quad, SuperPanel& out) const {
    _mm512_store_si512(out.w[0][sub / 2][8 * (sub % 2) + quad], _mm512_mullo_epi16(codes, low[sub]));
    _mm512_store_si512(out.w[1][sub / 2][8 * (sub % 2) + quad], _mm512_mullo_epi16(codes, high[sub]));
  }
};

struct TilesQ4_K {
  using Block = BlockQ4_K;
  static constexpr int kPlanes = 2, kShift = 3, kMins = 8;
  static constexpr bool kHighSigned = false;

  static void decode(const RowStarts& rows, size_t at, SuperPanel& out) {
    V16 head[4];
    transpose(rows, at, head);
    ScalesK4 scales;
    scales.take(head, out);
    for (int chunk = 0; chunk < 4; chunk++)
      for (int h = 0; h < 2; h++) {
        V16 q[4];
        transpose(rows, at + offsetof(Block, qs) + 32 * chunk + 16 * h, q);
        for (int i = 0; i < 4; i++) {
          scales.put(low_nibbles(q[i]), 2 * chunk, 4 * h + i, out);
          scales.put(high_nibbles(q[i]), 2 * chunk + 1, 4 * h + i, out);
        }
      }
  }
};

struct TilesQ5_K {
  using Block = BlockQ5_K;
  static constexpr int kPlanes = 2, kShift = 3, kMins = 8;
  static constexpr bool kHighSigned = false;

  static void decode(const RowStarts& rows, size_t at, SuperPanel& out) {
    V16 head[4];
    transpose(rows, at, head);
    ScalesK4 scales;
    scales.take(head, out);
    for (int h = 0; h < 2; h++) {
      V16 fifth[4];  // bit s of a byte: sub-block s
      transpose(rows, at + offsetof(Block, qh) + 16 * h, fifth);
      for (int chunk = 0; chunk < 4; chunk++) {
        V16 q[4];
        transpose(rows, at + offsetof(Block, qs) + 32 * chunk + 16 * h, q);
        for (int i = 0; i < 4; i++) {
          const V16 low = low_nibbles(q[i]), high = high_nibbles(q[i]);
          scales.put(or_masked(low, _mm512_slli_epi16(fifth[i], 4), 0x10101010), 2 * chunk, 4 * h + i, out);
          scales.put(or_masked(high, _mm512_slli_epi16(fifth[i], 3), 0x10101010), 2 * chunk + 1, 4 * h + i, out);
          fifth[i] = _mm512_srli_epi16(fifth[i], 2);
        }
      }
    }
  }
};

// Both bytes of (code - kOffset) * scale. In 32-bit lanes of 4 codes, even and odd bytes meet the scale apart.
template <int kOffset>
struct ByteScale {
  V16 even, odd, offset;

  // Byte `byte` of each lane is the row's scale, signed.
  PERIGEE_INLINE void take(V16 scales, uint32_t byte) {
    even = pick(scales, 0x80008000 | byte << 16 | byte);
    odd = pick(scales, 0x00800080 | byte << 24 | byte << 8);
    offset = _mm512_srai_epi16(odd, kOffset == 4 ? 6 : kOffset == 32 ? 3 : 1);  // kOffset * scale
    static_assert(kOffset == 4 || kOffset == 32 || kOffset == 128);
  }

  // Unsigned codes of elements 4 i .. 4 i + 3.
  PERIGEE_INLINE void put(V16 codes, uint32_t i, SuperPanel& out) const {
    const V16 e = _mm512_sub_epi16(_mm512_maddubs_epi16(codes, even), offset);
    const V16 o = _mm512_sub_epi16(_mm512_maddubs_epi16(codes, odd), offset);
    _mm512_store_si512(out.w[0][i / 16][i % 16], or_masked(_mm512_slli_epi16(o, 8), e, 0x00ff00ff));
    _mm512_store_si512(out.w[1][i / 16][i % 16], or_masked(_mm512_srli_epi16(e, 8), o, 0xff00ff00));
  }
};

struct BytePlanes {
  static constexpr int kPlanes = 2, kShift = 8, kMins = 0;
  static constexpr bool kHighSigned = true;
};

struct TilesQ6_K : BytePlanes {
  using Block = BlockQ6_K;

  static void decode(const RowStarts& rows, size_t at, SuperPanel& out) {
    V16 scales[4];
    transpose(rows, at + offsetof(Block, scales), scales);
    out.d = high_halfs(gather(rows, at + offsetof(Block, d) - 2));  // reads no further than the block
    for (uint32_t n = 0; n < 2; n++)
      for (uint32_t h = 0; h < 2; h++) {
        V16 even[4], odd[4], upper[4];  // element 32 j + l of half n; l = 16 h + 4 i: nibbles of j = 0, 2 and of 1, 3
        transpose(rows, at + 64 * n + 16 * h, even);
        transpose(rows, at + 64 * n + 32 + 16 * h, odd);
        transpose(rows, at + offsetof(Block, qh) + 32 * n + 16 * h, upper);
        ByteScale<32> scale[4];
        for (uint32_t j = 0; j < 4; j++) scale[j].take(scales[2 * n + j / 2], 2 * (j % 2) + h);
        for (uint32_t i = 0; i < 4; i++) {
          const V16 u = upper[i];
          const uint32_t quad = 32 * n + 4 * h + i;
          scale[0].put(or_masked(low_nibbles(even[i]), _mm512_slli_epi16(u, 4), 0x30303030), quad, out);
          scale[1].put(or_masked(low_nibbles(odd[i]), _mm512_slli_epi16(u, 2), 0x30303030), quad + 8, out);
          scale[2].put(or_masked(high_nibbles(even[i]), u, 0x30303030), quad + 16, out);
          scale[3].put(or_masked(high_nibbles(odd[i]), _mm512_srli_epi16(u, 2), 0x30303030), quad + 24, out);
        }
      }
  }
};

struct TilesQ3_K : BytePlanes {
  using Block = BlockQ3_K;

  static void decode(const RowStarts& rows, size_t at, SuperPanel& out) {
    out.d = high_halfs(gather(rows, at + offsetof(Block, d) - 2));
    const size_t s = at + offsetof(Block, scales);
    const V16 a = gather(rows, s), b = gather(rows, s + 4), upper = gather(rows, s + 8);
    const V16 unsigned_scales[4] = {or_masked(low_nibbles(a), _mm512_slli_epi32(upper, 4), 0x30303030),
                                    or_masked(low_nibbles(b), _mm512_slli_epi32(upper, 2), 0x30303030),
                                    or_masked(high_nibbles(a), upper, 0x30303030),
                                    or_masked(high_nibbles(b), _mm512_srli_epi32(upper, 2), 0x30303030)};
    V16 scales[4];
    for (int i = 0; i < 4; i++) scales[i] = _mm512_sub_epi8(unsigned_scales[i], _mm512_set1_epi8(32));
    for (uint32_t h = 0; h < 2; h++) {
      V16 third[4];  // bit 4 n + j of a byte: element 32 j + l of half n
      transpose(rows, at + 16 * h, third);
      for (uint32_t n = 0; n < 2; n++) {
        V16 q[4];
        transpose(rows, at + offsetof(Block, qs) + 32 * n + 16 * h, q);
        for (uint32_t j = 0; j < 4; j++) {
          ByteScale<4> scale;
          scale.take(scales[2 * n + j / 2], 2 * (j % 2) + h);
          for (uint32_t i = 0; i < 4; i++) {
            scale.put(or_masked(and_splat(q[i], 0x03030303), _mm512_slli_epi16(third[i], 2), 0x04040404),
                      32 * n + 8 * j + 4 * h + i, out);
            q[i] = _mm512_srli_epi16(q[i], 2);
            third[i] = _mm512_srli_epi16(third[i], 1);
          }
        }
      }
    }
  }
};

struct TilesIQ4_XS : BytePlanes {
  using Block = BlockIQ4_XS;

  static void decode(const RowStarts& rows, size_t at, SuperPanel& out) {
    V16 head[4];  // d and scales_h, scales_l, codes
    transpose(rows, at, head);
    out.d = low_halfs(head[0]);
    V16 upper = _mm512_srli_epi32(head[0], 16);  // two bits each; byte i shall have those of sub-blocks 2 i and 2 i + 1
    upper = and_splat(_mm512_or_si512(upper, _mm512_slli_epi32(upper, 8)), 0x00ff00ff);
    upper = and_splat(_mm512_or_si512(upper, _mm512_slli_epi32(upper, 4)), 0x0f0f0f0f);
    const V16 offset = _mm512_set1_epi8(32);
    const V16 scales[2] = {
        _mm512_sub_epi8(or_masked(low_nibbles(head[1]), _mm512_slli_epi32(upper, 4), 0x30303030), offset),
        _mm512_sub_epi8(or_masked(high_nibbles(head[1]), _mm512_slli_epi32(upper, 2), 0x30303030), offset)};
    const V16 values = _mm512_xor_si512(iq4_values(), _mm512_set1_epi8(-128));  // value + 128, unsigned
    for (uint32_t s = 0; s < 8; s++) {
      ByteScale<128> scale;
      scale.take(scales[s % 2], s / 2);
      V16 q[8];
      nibbles32(rows, at + offsetof(Block, qs) + 16 * s, q);
      for (uint32_t i = 0; i < 8; i++) scale.put(_mm512_shuffle_epi8(values, q[i]), 8 * s + i, out);
    }
  }
};

struct TilesQ2_K {
  using Block = BlockQ2_K;
  static constexpr int kPlanes = 1, kShift = 0, kMins = 16;
  static constexpr bool kHighSigned = false;

  static void decode(const RowStarts& rows, size_t at, SuperPanel& out) {
    V16 scales[4];  // low nibbles scales, high ones mins
    transpose(rows, at, scales);
    const V16 head = gather(rows, at + offsetof(Block, d));
    out.d = low_halfs(head);
    out.dmin = high_halfs(head);
    for (int i = 0; i < 4; i++) {
      const V16 mins = high_nibbles(scales[i]);
      out.min[2 * i] = pick(mins, 0x80018000);
      out.min[2 * i + 1] = pick(mins, 0x80038002);
    }
    for (uint32_t n = 0; n < 2; n++)
      for (uint32_t h = 0; h < 2; h++) {
        V16 q[4];  // element 32 j + l of half n: bits 2 j, 2 j + 1
        transpose(rows, at + offsetof(Block, qs) + 32 * n + 16 * h, q);
        for (uint32_t j = 0; j < 4; j++) {
          const uint32_t byte = 2 * (j % 2) + h;
          const V16 scale = pick(low_nibbles(scales[2 * n + j / 2]), 0x80008000 | byte << 16 | byte);
          for (uint32_t i = 0; i < 4; i++) {
            _mm512_store_si512(out.w[0][2 * n + j / 2][8 * (j % 2) + 4 * h + i],
                               _mm512_mullo_epi16(and_splat(q[i], 0x03030303), scale));
            q[i] = _mm512_srli_epi16(q[i], 2);
          }
        }
      }
  }
};
