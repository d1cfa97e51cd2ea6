// 16 weight rows x 256 columns to tiles. A tile of weights has 4 neighbouring elements of one row in a 32-bit lane, rows
// along the vector; so the packed bytes of 16 rows are transposed as they lie, 16 bytes of a row at a time, and unpacked
// afterwards, each lane with its own row's scale.
//
// Superblocks: code * scale does not fit a byte. It is held as two byte planes, and isum = low plane's sum + high plane's
// sum << kShift, which is exact:
//   Q4_K Q5_K  code * (scale & 7) and code * (scale >> 3), at most 31 * 7: unsigned bytes, kShift 3
//   Q6_K       the two bytes of (code - 32) * scale, the upper one signed, kShift 8

using V16 = __m512i;  // 16 lanes of 32 bits, one per weight row

// Where 16 weight rows start. Rows beyond the matrix repeat its last one.
struct RowStarts {
  const uint8_t* row[16];
  V16 offset;  // from row[0]

  void set(const uint8_t* first, size_t stride, uint32_t rows) {
    alignas(64) int32_t offsets[16];
    for (uint32_t i = 0; i < 16; i++) {
      offsets[i] = int32_t((i < rows ? i : rows - 1) * stride);
      row[i] = first + offsets[i];
    }
    offset = _mm512_load_si512(offsets);
  }
};

// A superblock panel: [plane][64 elements][4 elements][16 rows][4].
struct SuperPanel {
  alignas(64) uint8_t w[2][4][16][64];
  V16 min[4];  // 16-bit mins of sub-blocks 2 i and 2 i + 1
  __m512 d, dmin;
};

// A panel of up to 8 blocks: [block][4 elements][16 rows][4].
struct BlockPanel {
  alignas(64) uint8_t w[8][8][64];
  __m512 d[8], m[8];
};

PERIGEE_INLINE V16 splat(uint32_t v) { return _mm512_set1_epi32(int32_t(v)); }
PERIGEE_INLINE V16 and_splat(V16 a, uint32_t v) { return _mm512_and_si512(a, splat(v)); }
PERIGEE_INLINE V16 or_masked(V16 a, V16 b, uint32_t mask) {  // a | (b & mask)
  return _mm512_ternarylogic_epi32(a, b, splat(mask), 0xf8);
}
PERIGEE_INLINE __m512 low_halfs(V16 v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }

// In every lane, 4 bytes picked by the bytes of `which`: 0..3 of that lane, 0x80 for zero.
PERIGEE_INLINE V16 pick(V16 v, uint32_t which) {
  const V16 lanes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  return _mm512_shuffle_epi8(v, _mm512_or_si512(splat(which), lanes));
}

// Bytes `at` .. at + 15 of 16 rows: lane r of out[i] is row r's bytes at + 4 i .. at + 4 i + 3.
PERIGEE_INLINE void transpose(const RowStarts& rows, size_t at, V16 out[4]) {
  V16 v[4];
  for (int i = 0; i < 4; i++) {
    const auto bytes = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.row[r] + at)); };
    v[i] = _mm512_castsi128_si512(bytes(i));
    v[i] = _mm512_inserti32x4(v[i], bytes(4 + i), 1);
    v[i] = _mm512_inserti32x4(v[i], bytes(8 + i), 2);
    v[i] = _mm512_inserti32x4(v[i], bytes(12 + i), 3);
  }
  const V16 ab0 = _mm512_unpacklo_epi32(v[0], v[1]), ab1 = _mm512_unpackhi_epi32(v[0], v[1]);
  const V16 cd0 = _mm512_unpacklo_epi32(v[2], v[3]), cd1 = _mm512_unpackhi_epi32(v[2], v[3]);
  out[0] = _mm512_unpacklo_epi64(ab0, cd0);
  out[1] = _mm512_unpackhi_epi64(ab0, cd0);
  out[2] = _mm512_unpacklo_epi64(ab1, cd1);
  out[3] = _mm512_unpackhi_epi64(ab1, cd1);
}

PERIGEE_INLINE V16 gather(const RowStarts& rows, size_t at) {
  return _mm512_i32gather_epi32(rows.offset, rows.row[0] + at, 1);
}

// --- superblocks --------------------------------------------------------------------------------------------------------

// Both planes of Q4_K and Q5_K: a 16-bit product by a scale's three bits multiplies two bytes, neither overflowing.
struct ScalesK4 {
  V16 low[8], high[8];  // per sub-block, as 16 bits

  // From the 16 bytes of d, dmin and scales.
  PERIGEE_INLINE void take(const V16 head[4], SuperPanel& out) {
    out.d = low_halfs(head[0]);
    out.dmin = low_halfs(_mm512_srli_epi32(head[0], 16));
    const V16 scales[2] = {and_splat(head[1], 0x3f3f3f3f),
                           or_masked(and_splat(head[3], 0x0f0f0f0f), _mm512_srli_epi32(head[1], 2), 0x30303030)};
    const V16 mins[2] = {and_splat(head[2], 0x3f3f3f3f), or_masked(and_splat(_mm512_srli_epi32(head[3], 4), 0x0f0f0f0f),
                                                                   _mm512_srli_epi32(head[2], 2), 0x30303030)};
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
  static constexpr int kShift = 3;
  static constexpr bool kHasMin = true, kHighSigned = false;

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
          scales.put(and_splat(q[i], 0x0f0f0f0f), 2 * chunk, 4 * h + i, out);
          scales.put(and_splat(_mm512_srli_epi16(q[i], 4), 0x0f0f0f0f), 2 * chunk + 1, 4 * h + i, out);
        }
      }
  }
};

struct TilesQ5_K {
  using Block = BlockQ5_K;
  static constexpr int kShift = 3;
  static constexpr bool kHasMin = true, kHighSigned = false;

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
          const V16 low = and_splat(q[i], 0x0f0f0f0f), high = and_splat(_mm512_srli_epi16(q[i], 4), 0x0f0f0f0f);
          scales.put(or_masked(low, _mm512_slli_epi16(fifth[i], 4), 0x10101010), 2 * chunk, 4 * h + i, out);
          scales.put(or_masked(high, _mm512_slli_epi16(fifth[i], 3), 0x10101010), 2 * chunk + 1, 4 * h + i, out);
          fifth[i] = _mm512_srli_epi16(fifth[i], 2);
        }
      }
    }
  }
};

struct TilesQ6_K {
  using Block = BlockQ6_K;
  static constexpr int kShift = 8;
  static constexpr bool kHasMin = false, kHighSigned = true;

  // A scale where the even and where the odd byte of each 16 bits meets it, and 32 * scale.
  struct Scale {
    V16 even, odd, offset;
  };

  PERIGEE_INLINE static Scale scale_at(const V16 scales[4], uint32_t s) {
    const uint32_t byte = s % 4;
    const V16 odd = pick(scales[s / 4], 0x00800080 | byte << 24 | byte << 8);
    return {pick(scales[s / 4], 0x80008000 | byte << 16 | byte), odd, _mm512_srai_epi16(odd, 3)};
  }

  // codes 0..63; `sub` of 16 elements, `quad` of 4 within it.
  PERIGEE_INLINE static void put(V16 codes, const Scale& scale, uint32_t sub, int quad, SuperPanel& out) {
    const V16 even = _mm512_sub_epi16(_mm512_maddubs_epi16(codes, scale.even), scale.offset);
    const V16 odd = _mm512_sub_epi16(_mm512_maddubs_epi16(codes, scale.odd), scale.offset);
    const int at = 4 * int(sub % 4) + quad;
    _mm512_store_si512(out.w[0][sub / 4][at], or_masked(_mm512_slli_epi16(odd, 8), even, 0x00ff00ff));
    _mm512_store_si512(out.w[1][sub / 4][at], or_masked(_mm512_srli_epi16(even, 8), odd, 0xff00ff00));
  }

  static void decode(const RowStarts& rows, size_t at, SuperPanel& out) {
    V16 scales[4];
    transpose(rows, at + offsetof(Block, scales), scales);
    out.d =
        low_halfs(_mm512_srli_epi32(gather(rows, at + offsetof(Block, d) - 2), 16));  // reads no further than the block
    for (uint32_t n = 0; n < 2; n++)
      for (uint32_t h = 0; h < 2; h++) {
        V16 even[4], odd[4], upper[4];  // element 32 j + l of half n; l = 16 h + 4 i: nibbles of j = 0, 2 and of 1, 3
        transpose(rows, at + 64 * n + 16 * h, even);
        transpose(rows, at + 64 * n + 32 + 16 * h, odd);
        transpose(rows, at + offsetof(Block, qh) + 32 * n + 16 * h, upper);
        const uint32_t s = 8 * n + h;
        Scale scale[4];
        for (uint32_t j = 0; j < 4; j++) scale[j] = scale_at(scales, s + 2 * j);
        for (int i = 0; i < 4; i++) {
          const auto low = [](V16 v) { return and_splat(v, 0x0f0f0f0f); };
          const auto high = [](V16 v) { return and_splat(_mm512_srli_epi16(v, 4), 0x0f0f0f0f); };
          const V16 u = upper[i];
          put(or_masked(low(even[i]), _mm512_slli_epi16(u, 4), 0x30303030), scale[0], s, i, out);
          put(or_masked(low(odd[i]), _mm512_slli_epi16(u, 2), 0x30303030), scale[1], s + 2, i, out);
          put(or_masked(high(even[i]), u, 0x30303030), scale[2], s + 4, i, out);
          put(or_masked(high(odd[i]), _mm512_srli_epi16(u, 2), 0x30303030), scale[3], s + 6, i, out);
        }
      }
  }
};

// --- blocks of 32: signed codes -----------------------------------------------------------------------------------------

// The 16 bytes of nibbles at `at`: q[0..3] the low ones, q[4..7] the high ones.
PERIGEE_INLINE void nibbles32(const RowStarts& rows, size_t at, V16 q[8]) {
  V16 v[4];
  transpose(rows, at, v);
  for (int i = 0; i < 4; i++) {
    q[i] = and_splat(v[i], 0x0f0f0f0f);
    q[4 + i] = and_splat(_mm512_srli_epi16(v[i], 4), 0x0f0f0f0f);
  }
}

struct TilesQ8_0 {
  using Block = BlockQ8_0;
  static constexpr bool kHasMin = false;

  PERIGEE_INLINE static void codes(const RowStarts& rows, size_t at, V16 q[8]) {
    transpose(rows, at + offsetof(Block, qs), q);
    transpose(rows, at + offsetof(Block, qs) + 16, q + 4);
  }
};

template <typename BlockType, bool kMin>  // Q4_0 and Q4_1
struct TilesQ4 {
  using Block = BlockType;
  static constexpr bool kHasMin = kMin;

  PERIGEE_INLINE static void codes(const RowStarts& rows, size_t at, V16 q[8]) {
    nibbles32(rows, at + offsetof(Block, qs), q);
    if constexpr (!kMin)
      for (int i = 0; i < 8; i++) q[i] = _mm512_sub_epi8(q[i], _mm512_set1_epi8(8));
  }
};

template <typename BlockType, bool kMin>  // Q5_0 and Q5_1
struct TilesQ5 {
  using Block = BlockType;
  static constexpr bool kHasMin = kMin;

  PERIGEE_INLINE static void codes(const RowStarts& rows, size_t at, V16 q[8]) {
    nibbles32(rows, at + offsetof(Block, qs), q);
    const V16 fifth = gather(rows, at + offsetof(Block, qh));
    for (uint32_t i = 0; i < 8; i++) {  // elements 4 i .. 4 i + 3: bits of byte i / 2
      const V16 byte = pick(fifth, 0x01010101 * (i / 2)), bits = splat(i % 2 == 0 ? 0x08040201 : 0x80402010);
      if constexpr (kMin) {
        q[i] = _mm512_mask_add_epi8(q[i], _mm512_test_epi8_mask(byte, bits), q[i], _mm512_set1_epi8(16));
      } else {
        q[i] = _mm512_mask_sub_epi8(q[i], _mm512_testn_epi8_mask(byte, bits), q[i], _mm512_set1_epi8(16));
      }
    }
  }
};

struct TilesIQ4_NL {
  using Block = BlockIQ4_NL;
  static constexpr bool kHasMin = false;

  PERIGEE_INLINE static void codes(const RowStarts& rows, size_t at, V16 q[8]) {
    nibbles32(rows, at + offsetof(Block, qs), q);
    const V16 values = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kIQ4Values)));
    for (int i = 0; i < 8; i++) q[i] = _mm512_shuffle_epi8(values, q[i]);
  }
};

// `count` blocks from byte `at` of each row.
template <typename Format>
void decode_blocks(const RowStarts& rows, size_t at, uint32_t count, BlockPanel& out) {
  for (uint32_t b = 0; b < count; b++, at += sizeof(typename Format::Block)) {
    const V16 head = gather(rows, at);
    out.d[b] = low_halfs(head);
    if constexpr (Format::kHasMin) out.m[b] = low_halfs(_mm512_srli_epi32(head, 16));
    V16 q[8];
    Format::codes(rows, at, q);
    for (int i = 0; i < 8; i++) _mm512_store_si512(out.w[b][i], q[i]);
  }
}
