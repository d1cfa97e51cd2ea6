// How weight blocks unpack with rows along the vectors: 32-bit lane r of a vector holds four bytes of row r.

constexpr uint32_t kWideGroups = 2;  // of 16 rows in a panel, for which panel vectors alternate

// The blocks of 16 rows, and where a like amount of memory begins that is needed next.
struct Rows16 {
  const uint8_t* row[16];
  mutable const char* ahead;  // fetched into L2 while these are read
  const char* ahead_end;

  PERIGEE_INLINE __m128i piece(int r, size_t offset) const {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[r] + offset));
  }

  // The 16 bytes at `offset` of every row as four columns.
  PERIGEE_INLINE void columns(size_t offset, W out[4]) const {
    // As much as is read here: in one go it would keep these loads waiting (a third of the speed from memory).
    if (ahead < ahead_end) {
      for (int i = 0; i < 256; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
      ahead += 256;
    }
    W v[4];  // v[k]: rows k, 4 + k, 8 + k, 12 + k
    for (int k = 0; k < 4; k++) {
      v[k] = _mm512_castsi128_si512(piece(k, offset));
      v[k] = _mm512_inserti32x4(v[k], piece(4 + k, offset), 1);
      v[k] = _mm512_inserti32x4(v[k], piece(8 + k, offset), 2);
      v[k] = _mm512_inserti32x4(v[k], piece(12 + k, offset), 3);
    }
    const W ab0 = _mm512_unpacklo_epi32(v[0], v[1]), ab1 = _mm512_unpackhi_epi32(v[0], v[1]);
    const W cd0 = _mm512_unpacklo_epi32(v[2], v[3]), cd1 = _mm512_unpackhi_epi32(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi64(ab0, cd0);
    out[1] = _mm512_unpackhi_epi64(ab0, cd0);
    out[2] = _mm512_unpacklo_epi64(ab1, cd1);
    out[3] = _mm512_unpackhi_epi64(ab1, cd1);
  }
};

// One group's vectors in a panel: [i] is i * kWideGroups further on.
struct Column {
  W* at;

  PERIGEE_INLINE W& operator[](int i) const { return at[i * int(kWideGroups)]; }
};

PERIGEE_INLINE W bytes_and(W v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8(char(mask))); }

template <int kBits>  // to the left where positive
PERIGEE_INLINE W shifted(W v) {
  if constexpr (kBits >= 0) return _mm512_slli_epi32(v, kBits);
  else return _mm512_srli_epi32(v, -kBits);
}

// v with the bits `from` on of every byte of `upper` put in at `to`; `mask` has those bits.
template <int kFrom, int kTo>
PERIGEE_INLINE W with_bits(W v, W upper, int mask) {
  return _mm512_ternarylogic_epi64(v, shifted<kTo - kFrom>(upper), _mm512_set1_epi8(char(mask)), 0xf8);  // a | (b & c)
}

// Calls body with the constants 0 .. kCount - 1.
template <int kCount, typename Body>
PERIGEE_INLINE void repeat(Body body) {
  [&]<int... kI>(std::integer_sequence<int, kI...>) { (body(std::integral_constant<int, kI>()), ...); }
  (std::make_integer_sequence<int, kCount>());
}

// --- superblocks: codes as the meaning where a format is signed (kShiftedX), scales as 32 bits, mins as 16-bit pairs ------

// Bytes 0 and 1 of every lane as its two words.
PERIGEE_INLINE W spread_pair(W v) {
  const W low = _mm512_and_si512(v, _mm512_set1_epi32(0xff));
  return _mm512_ternarylogic_epi64(low, _mm512_slli_epi32(v, 8), _mm512_set1_epi32(0xff0000), 0xf8);
}

// Scales and mins of sub-blocks 0..3 are bytes of `low`, those of 4..7 nibbles of `high` and bits 6, 7 of `low`.
PERIGEE_INLINE void k4_columns(const Rows16& rows, Column scale, Column min) {
  W head[4];  // d and dmin, then the 12 packed bytes
  rows.columns(0, head);
  const W scales[2] = {bytes_and(head[1], 63), with_bits<6, 4>(bytes_and(head[3], 15), head[1], 0x30)};
  const W mins[2] = {bytes_and(head[2], 63),
                     with_bits<6, 4>(bytes_and(_mm512_srli_epi32(head[3], 4), 15), head[2], 0x30)};
  repeat<8>([&](auto s) { scale[s] = _mm512_and_si512(shifted<-8 * (s % 4)>(scales[s / 4]), _mm512_set1_epi32(255)); });
  repeat<4>([&](auto p) { min[p] = spread_pair(shifted<-16 * (p % 2)>(mins[p / 2])); });
}

PERIGEE_INLINE void fill_codes(WideQ4_K, const Rows16& rows, Column out) {
  for (int p = 0; p < 8; p++) {
    W v[4];
    rows.columns(offsetof(BlockQ4_K, qs) + size_t(16 * p), v);
    for (int i = 0; i < 4; i++) {
      const int at = 16 * (p / 2) + 4 * (p % 2) + i;
      out[at] = bytes_and(v[i], 15);
      out[at + 8] = bytes_and(_mm512_srli_epi32(v[i], 4), 15);
    }
  }
}

PERIGEE_INLINE void fill_scales(WideQ4_K, const Rows16& rows, Column scale, Column min) {
  k4_columns(rows, scale, min);
}

PERIGEE_INLINE void fill_codes(WideQ5_K, const Rows16& rows, Column out) {
  W fifths[8];
  rows.columns(offsetof(BlockQ5_K, qh), fifths);
  rows.columns(offsetof(BlockQ5_K, qh) + 16, fifths + 4);
  repeat<8>([&](auto p) {
    constexpr int chunk = p / 2, half = p % 2;
    W v[4];
    rows.columns(offsetof(BlockQ5_K, qs) + size_t(16 * p), v);
    for (int i = 0; i < 4; i++) {
      const W fifth = fifths[4 * half + i];
      const int at = 16 * chunk + 4 * half + i;
      out[at] = with_bits<2 * chunk, 4>(bytes_and(v[i], 15), fifth, 16);
      out[at + 8] = with_bits<2 * chunk + 1, 4>(bytes_and(_mm512_srli_epi32(v[i], 4), 15), fifth, 16);
    }
  });
}

PERIGEE_INLINE void fill_scales(WideQ5_K, const Rows16& rows, Column scale, Column min) {
  k4_columns(rows, scale, min);
}

PERIGEE_INLINE void fill_codes(WideQ6_K, const Rows16& rows, Column out) {
  const W offset = _mm512_set1_epi8(WideQ6_K::kOffset);
  for (int p = 0; p < 4; p++) {
    const int n = p / 2, half = p % 2;
    W upper[4];
    rows.columns(offsetof(BlockQ6_K, qh) + size_t(32 * n + 16 * half), upper);
    repeat<2>([&](auto j) {
      W v[4];
      rows.columns(offsetof(BlockQ6_K, ql) + size_t(64 * n + 32 * j + 16 * half), v);
      for (int i = 0; i < 4; i++) {
        const int at = 32 * n + 8 * j + 4 * half + i;
        const W low = with_bits<2 * j, 4>(bytes_and(v[i], 15), upper[i], 0x30);
        const W high = with_bits<2 * j + 4, 4>(bytes_and(_mm512_srli_epi32(v[i], 4), 15), upper[i], 0x30);
        out[at] = _mm512_sub_epi8(low, offset);
        out[at + 16] = _mm512_sub_epi8(high, offset);
      }
    });
  }
}

PERIGEE_INLINE void fill_scales(WideQ6_K, const Rows16& rows, Column scale, Column) {
  W v[4];
  rows.columns(offsetof(BlockQ6_K, scales), v);
  repeat<16>([&](auto s) { scale[s] = _mm512_srai_epi32(shifted<24 - 8 * (s % 4)>(v[s / 4]), 24); });
}

// Calls body(v, at, n, j) for every column of two-bit codes: bits 2 j of v are elements 4 at .. 4 at + 3.
template <typename Block, typename Body>
PERIGEE_INLINE void two_bit_columns(const Rows16& rows, Body body) {
  repeat<4>([&](auto p) {
    W v[4];
    rows.columns(offsetof(Block, qs) + size_t(16 * p), v);
    repeat<4>([&](auto j) {
      for (int i = 0; i < 4; i++) body(bytes_and(shifted<-2 * j>(v[i]), 3), 32 * (p / 2) + 8 * j + 4 * (p % 2) + i);
    });
  });
}

PERIGEE_INLINE void fill_codes(WideQ2_K, const Rows16& rows, Column out) {
  two_bit_columns<BlockQ2_K>(rows, [out](W code, int at) { out[at] = code; });
}

PERIGEE_INLINE void fill_scales(WideQ2_K, const Rows16& rows, Column scale, Column min) {
  W v[4];
  rows.columns(offsetof(BlockQ2_K, scales), v);
  repeat<16>([&](auto s) { scale[s] = _mm512_and_si512(shifted<-8 * (s % 4)>(v[s / 4]), _mm512_set1_epi32(15)); });
  repeat<8>([&](auto p) { min[p] = spread_pair(bytes_and(shifted<-16 * (p % 2) - 4>(v[p / 2]), 15)); });
}

PERIGEE_INLINE void fill_codes(WideQ3_K, const Rows16& rows, Column out) {
  W thirds[8];
  rows.columns(offsetof(BlockQ3_K, hmask), thirds);
  rows.columns(offsetof(BlockQ3_K, hmask) + 16, thirds + 4);
  two_bit_columns<BlockQ3_K>(rows, [&](W code, int at) {
    const W third = _mm512_srl_epi32(thirds[at % 8], _mm_cvtsi32_si128(at / 8));
    code = _mm512_ternarylogic_epi64(code, _mm512_slli_epi32(third, 2), _mm512_set1_epi8(4), 0xf8);
    out[at] = _mm512_sub_epi8(code, _mm512_set1_epi8(4));
  });
}

PERIGEE_INLINE void fill_scales(WideQ3_K, const Rows16& rows, Column scale, Column) {
  W v[4];  // the last codes, then the 12 packed bytes: nothing beyond the block is read
  rows.columns(offsetof(BlockQ3_K, scales) - 4, v);
  repeat<16>([&](auto s) {
    const W low = _mm512_and_si512(shifted<-8 * (s % 4) - 4 * (s / 8)>(v[1 + s % 8 / 4]), _mm512_set1_epi32(15));
    const W high = _mm512_and_si512(shifted<4 - 8 * (s % 4) - 2 * (s / 4)>(v[3]), _mm512_set1_epi32(0x30));
    scale[s] = _mm512_sub_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(32));
  });
}

// 16 bytes of nibbles: body(codes, at) for the low ones at 4 .. 3 and the high ones behind them.
template <typename Body>
PERIGEE_INLINE void nibble_columns(const Rows16& rows, size_t offset, Body body) {
  W v[4];
  rows.columns(offset, v);
  for (int i = 0; i < 4; i++) {
    body(bytes_and(v[i], 15), i);
    body(bytes_and(_mm512_srli_epi32(v[i], 4), 15), 4 + i);
  }
}

PERIGEE_INLINE void fill_codes(WideIQ4_XS, const Rows16& rows, Column out) {
  for (int s = 0; s < 8; s++)
    nibble_columns(rows, offsetof(BlockIQ4_XS, qs) + size_t(16 * s),
                   [&](W nibbles, int i) { out[8 * s + i] = iq4_values(nibbles); });
}

PERIGEE_INLINE void fill_scales(WideIQ4_XS, const Rows16& rows, Column scale, Column) {
  W head[4];  // d and the upper bits, the nibbles, codes
  rows.columns(0, head);
  repeat<8>([&](auto s) {
    const W low = _mm512_and_si512(shifted<-4 * s>(head[1]), _mm512_set1_epi32(15));
    const W high = _mm512_and_si512(shifted<4 - 16 - 2 * s>(head[0]), _mm512_set1_epi32(0x30));
    scale[s] = _mm512_sub_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(32));
  });
}

// --- blocks of 32 at `offset` of their rows: codes kOffset above their meaning --------------------------------------------

PERIGEE_INLINE void fill_block(WideQ4_0, const Rows16& rows, size_t offset, Column out) {
  nibble_columns(rows, offset + offsetof(BlockQ4_0, qs), [&](W nibbles, int i) { out[i] = nibbles; });
}

PERIGEE_INLINE void fill_block(WideQ4_1, const Rows16& rows, size_t offset, Column out) {
  nibble_columns(rows, offset + offsetof(BlockQ4_1, qs), [&](W nibbles, int i) { out[i] = nibbles; });
}

PERIGEE_INLINE void fill_block(WideIQ4_NL, const Rows16& rows, size_t offset, Column out) {
  nibble_columns(rows, offset + offsetof(BlockIQ4_NL, qs),
                 [&](W nibbles, int i) { out[i] = flip_signs(iq4_values(nibbles)); });
}

// Nibbles at qs and fifth bits, bit j for element j, in the 32 bits at qh.
PERIGEE_INLINE void five_bit_columns(const Rows16& rows, size_t qh, size_t qs, Column out) {
  W head[4];
  rows.columns(qh, head);
  nibble_columns(rows, qs, [&](W nibbles, int i) {
    const int byte = i / 2;  // its low or high four bits are elements 4 i .. 4 i + 3
    const int64_t low = 0x0404040400000000 + 0x0101010101010101 * byte, high = low + 0x0808080808080808;
    const W splat = _mm512_shuffle_epi8(head[0], _mm512_set_epi64(high, low, high, low, high, low, high, low));
    const __mmask64 fifth = _mm512_test_epi8_mask(splat, _mm512_set1_epi32(i % 2 == 0 ? 0x08040201 : int(0x80402010)));
    out[i] = _mm512_mask_add_epi8(nibbles, fifth, nibbles, _mm512_set1_epi8(16));
  });
}

PERIGEE_INLINE void fill_block(WideQ5_0, const Rows16& rows, size_t offset, Column out) {
  five_bit_columns(rows, offset + offsetof(BlockQ5_0, qh), offset + offsetof(BlockQ5_0, qs), out);
}

PERIGEE_INLINE void fill_block(WideQ5_1, const Rows16& rows, size_t offset, Column out) {
  five_bit_columns(rows, offset + offsetof(BlockQ5_1, qh), offset + offsetof(BlockQ5_1, qs), out);
}

PERIGEE_INLINE void fill_block(WideQ8_0, const Rows16& rows, size_t offset, Column out) {
  for (int half = 0; half < 2; half++) {
    W v[4];
    rows.columns(offset + offsetof(BlockQ8_0, qs) + size_t(16 * half), v);
    for (int i = 0; i < 4; i++) out[4 * half + i] = flip_signs(v[i]);
  }
}
