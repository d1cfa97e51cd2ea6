// 16 weight rows x 256 columns to tiles. A tile of weights has 4 neighbouring elements of one row in a 32-bit lane, rows
// along the vector; so the packed bytes of 16 rows are transposed as they lie, 16 bytes of a row at a time, and unpacked
// afterwards, each lane with its own row's scale.

using V16 = __m512i;  // 16 lanes of 32 bits, one per weight row

// Where 16 weight rows start. The matrix's last row stands in for those beyond it.
struct RowStarts {
  const uint8_t* row[16];
  V16 offset;  // from row[0]

  // Rows first .. first + 15 of the matrix at w.
  void set(const uint8_t* w, size_t row_bytes, uint32_t first, uint32_t rows) {
    alignas(64) int32_t offsets[16];
    for (uint32_t i = 0; i < 16; i++) row[i] = w + row_bytes * (first + i < rows ? first + i : rows - 1);
    for (uint32_t i = 0; i < 16; i++) offsets[i] = int32_t(row[i] - row[0]);
    offset = _mm512_load_si512(offsets);
  }
};

// A superblock panel: [plane][64 elements][4 elements][16 rows][4].
struct SuperPanel {
  alignas(64) uint8_t w[2][4][16][64];
  V16 min[8];  // 16-bit mins of sub-blocks 2 i and 2 i + 1; 8 or 16 sub-blocks
  __m512 d, dmin;
};

PERIGEE_INLINE V16 splat(uint32_t v) { return _mm512_set1_epi32(int32_t(v)); }
PERIGEE_INLINE V16 and_splat(V16 a, uint32_t v) { return _mm512_and_si512(a, splat(v)); }
PERIGEE_INLINE V16 or_masked(V16 a, V16 b, uint32_t mask) {  // a | (b & mask)
  return _mm512_ternarylogic_epi32(a, b, splat(mask), 0xf8);
}
PERIGEE_INLINE V16 low_nibbles(V16 v) { return and_splat(v, 0x0f0f0f0f); }
PERIGEE_INLINE V16 high_nibbles(V16 v) { return and_splat(_mm512_srli_epi16(v, 4), 0x0f0f0f0f); }
PERIGEE_INLINE __m512 low_halfs(V16 v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
PERIGEE_INLINE __m512 high_halfs(V16 v) { return low_halfs(_mm512_srli_epi32(v, 16)); }

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

// The 16 bytes of nibbles at `at`: q[0..3] the low ones, q[4..7] the high ones.
PERIGEE_INLINE void nibbles32(const RowStarts& rows, size_t at, V16 q[8]) {
  V16 v[4];
  transpose(rows, at, v);
  for (int i = 0; i < 4; i++) {
    q[i] = low_nibbles(v[i]);
    q[4 + i] = high_nibbles(v[i]);
  }
}

PERIGEE_INLINE V16 iq4_values() {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kIQ4Values)));
}
