// How weight blocks unpack with rows along the vectors: 32-bit lane r of a vector holds four bytes of row r. Written in the
// operations of avx2_wide.inl or avx512_wide.inl.

constexpr uint32_t kWideGroups = 2;  // of kLaneRows rows in a panel, for which panel vectors alternate

// The blocks of kLaneRows rows, and where a like amount of memory begins that is needed next.
struct LaneRows {
  const uint8_t* row[kLaneRows];
  mutable const char* ahead;  // fetched into L2 while these are read
  const char* ahead_end;

  // The 16 bytes at `offset` of every row as four columns.
  PERIGEE_INLINE void columns(size_t offset, W out[4]) const {
    // As much as is read here: in one go it would keep these loads waiting (a third of the speed from memory).
    if (ahead < ahead_end) {
      for (size_t i = 0; i < 4 * sizeof(W); i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
      ahead += 4 * sizeof(W);
    }
    const W a = every_fourth(row, offset), b = every_fourth(row + 1, offset);
    const W c = every_fourth(row + 2, offset), d = every_fourth(row + 3, offset);
    const W ab0 = zip_low32(a, b), ab1 = zip_high32(a, b), cd0 = zip_low32(c, d), cd1 = zip_high32(c, d);
    out[0] = zip_low64(ab0, cd0);
    out[1] = zip_high64(ab0, cd0);
    out[2] = zip_low64(ab1, cd1);
    out[3] = zip_high64(ab1, cd1);
  }
};

// One group's vectors in a panel: [i] is i * kWideGroups further on.
struct Column {
  W* at;

  PERIGEE_INLINE W& operator[](int i) const { return at[i * int(kWideGroups)]; }
};

PERIGEE_INLINE W bytes_and(W v, int mask) { return bit_and(v, wide8(mask)); }

// v with the bits `from` on of every byte of `upper` put in at `to`; `mask` has those bits.
template <int kFrom, int kTo>
PERIGEE_INLINE W with_bits(W v, W upper, int mask) {
  return merge(v, shifted<kTo - kFrom>(upper), wide8(mask));
}

// --- superblocks: codes as their meaning, mins as 16-bit pairs ---------------------------------------------------------

// Bytes 0 and 1 of every lane as its two words.
PERIGEE_INLINE W spread_pair(W v) { return merge(bit_and(v, wide32(0xff)), shifted<8>(v), wide32(0xff0000)); }

// Scales and mins of sub-blocks 0..3 are bytes of `low`, those of 4..7 nibbles of `high` and bits 6, 7 of `low`.
PERIGEE_INLINE void k4_columns(const LaneRows& rows, Column scale, Column min) {
  W head[4];  // d and dmin, then the 12 packed bytes
  rows.columns(0, head);
  const W scales[2] = {bytes_and(head[1], 63), with_bits<6, 4>(bytes_and(head[3], 15), head[1], 0x30)};
  const W mins[2] = {bytes_and(head[2], 63), with_bits<6, 4>(bytes_and(shifted<-4>(head[3]), 15), head[2], 0x30)};
  repeat<8>([&](auto s) { scale[s] = kept_scale(bit_and(shifted<-8 * (s % 4)>(scales[s / 4]), wide32(255))); });
  repeat<4>([&](auto p) { min[p] = spread_pair(shifted<-16 * (p % 2)>(mins[p / 2])); });
}

PERIGEE_INLINE void fill_codes(WideQ4_K, const LaneRows& rows, Column out) {
  for (int p = 0; p < 8; p++) {
    W v[4];
    rows.columns(offsetof(BlockQ4_K, qs) + size_t(16 * p), v);
    for (int i = 0; i < 4; i++) {
      const int at = 16 * (p / 2) + 4 * (p % 2) + i;
      out[at] = bytes_and(v[i], 15);
      out[at + 8] = bytes_and(shifted<-4>(v[i]), 15);
    }
  }
}

PERIGEE_INLINE void fill_scales(WideQ4_K, const LaneRows& rows, Column scale, Column min) {
  k4_columns(rows, scale, min);
}

PERIGEE_INLINE void fill_codes(WideQ5_K, const LaneRows& rows, Column out) {
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
      out[at + 8] = with_bits<2 * chunk + 1, 4>(bytes_and(shifted<-4>(v[i]), 15), fifth, 16);
    }
  });
}

PERIGEE_INLINE void fill_scales(WideQ5_K, const LaneRows& rows, Column scale, Column min) {
  k4_columns(rows, scale, min);
}

PERIGEE_INLINE void fill_codes(WideQ6_K, const LaneRows& rows, Column out) {
  const W offset = wide8(WideQ6_K::kOffset);
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
        const W high = with_bits<2 * j + 4, 4>(bytes_and(shifted<-4>(v[i]), 15), upper[i], 0x30);
        out[at] = sub8(low, offset);
        out[at + 16] = sub8(high, offset);
      }
    });
  }
}

PERIGEE_INLINE void fill_scales(WideQ6_K, const LaneRows& rows, Column scale, Column) {
  W v[4];
  rows.columns(offsetof(BlockQ6_K, scales), v);
  repeat<16>([&](auto s) { scale[s] = kept_scale(signed_top_byte(shifted<24 - 8 * (s % 4)>(v[s / 4]))); });
}

// Calls body(v, at, n, j) for every column of two-bit codes: bits 2 j of v are elements 4 at .. 4 at + 3.
template <typename Block, typename Body>
PERIGEE_INLINE void two_bit_columns(const LaneRows& rows, Body body) {
  repeat<4>([&](auto p) {
    W v[4];
    rows.columns(offsetof(Block, qs) + size_t(16 * p), v);
    repeat<4>([&](auto j) {
      for (int i = 0; i < 4; i++) body(bytes_and(shifted<-2 * j>(v[i]), 3), 32 * (p / 2) + 8 * j + 4 * (p % 2) + i);
    });
  });
}

PERIGEE_INLINE void fill_codes(WideQ2_K, const LaneRows& rows, Column out) {
  two_bit_columns<BlockQ2_K>(rows, [out](W code, int at) { out[at] = code; });
}

PERIGEE_INLINE void fill_scales(WideQ2_K, const LaneRows& rows, Column scale, Column min) {
  W v[4];
  rows.columns(offsetof(BlockQ2_K, scales), v);
  repeat<16>([&](auto s) { scale[s] = kept_scale(bit_and(shifted<-8 * (s % 4)>(v[s / 4]), wide32(15))); });
  repeat<8>([&](auto p) { min[p] = spread_pair(bytes_and(shifted<-16 * (p % 2) - 4>(v[p / 2]), 15)); });
}

PERIGEE_INLINE void fill_codes(WideQ3_K, const LaneRows& rows, Column out) {
  W thirds[8];
  rows.columns(offsetof(BlockQ3_K, hmask), thirds);
  rows.columns(offsetof(BlockQ3_K, hmask) + 16, thirds + 4);
  two_bit_columns<BlockQ3_K>(rows, [&](W code, int at) {
    const W third = shifted<2>(shifted_right(thirds[at % 8], at / 8));
    out[at] = sub8(merge(code, third, wide8(4)), wide8(WideQ3_K::kOffset));
  });
}

PERIGEE_INLINE void fill_scales(WideQ3_K, const LaneRows& rows, Column scale, Column) {
  W v[4];  // the last codes, then the 12 packed bytes: nothing beyond the block is read
  rows.columns(offsetof(BlockQ3_K, scales) - 4, v);
  repeat<16>([&](auto s) {
    const W low = bit_and(shifted<-8 * (s % 4) - 4 * (s / 8)>(v[1 + s % 8 / 4]), wide32(15));
    const W high = bit_and(shifted<4 - 8 * (s % 4) - 2 * (s / 4)>(v[3]), wide32(0x30));
    scale[s] = kept_scale(sub32(bit_or(low, high), wide32(32)));
  });
}

// 16 bytes of nibbles: body(codes, at) for the low ones at 4 .. 3 and the high ones behind them.
template <typename Body>
PERIGEE_INLINE void nibble_columns(const LaneRows& rows, size_t offset, Body body) {
  W v[4];
  rows.columns(offset, v);
  for (int i = 0; i < 4; i++) {
    body(bytes_and(v[i], 15), i);
    body(bytes_and(shifted<-4>(v[i]), 15), 4 + i);
  }
}

PERIGEE_INLINE void fill_codes(WideIQ4_XS, const LaneRows& rows, Column out) {
  for (int s = 0; s < 8; s++)
    nibble_columns(rows, offsetof(BlockIQ4_XS, qs) + size_t(16 * s),
                   [&](W nibbles, int i) { out[8 * s + i] = iq4_values(nibbles); });
}

PERIGEE_INLINE void fill_scales(WideIQ4_XS, const LaneRows& rows, Column scale, Column) {
  W head[4];  // d and the upper bits, the nibbles, codes
  rows.columns(0, head);
  repeat<8>([&](auto s) {
    const W low = bit_and(shifted<-4 * s>(head[1]), wide32(15));
    const W high = bit_and(shifted<4 - 16 - 2 * s>(head[0]), wide32(0x30));
    scale[s] = kept_scale(sub32(bit_or(low, high), wide32(32)));
  });
}

// --- blocks of 32 at `offset` of their rows: codes kOffset above their meaning --------------------------------------------

PERIGEE_INLINE void fill_block(WideQ4_0, const LaneRows& rows, size_t offset, Column out) {
  nibble_columns(rows, offset + offsetof(BlockQ4_0, qs), [&](W nibbles, int i) { out[i] = nibbles; });
}

PERIGEE_INLINE void fill_block(WideQ4_1, const LaneRows& rows, size_t offset, Column out) {
  nibble_columns(rows, offset + offsetof(BlockQ4_1, qs), [&](W nibbles, int i) { out[i] = nibbles; });
}

PERIGEE_INLINE void fill_block(WideIQ4_NL, const LaneRows& rows, size_t offset, Column out) {
  nibble_columns(rows, offset + offsetof(BlockIQ4_NL, qs),
                 [&](W nibbles, int i) { out[i] = kept_signed(iq4_values(nibbles)); });
}

// Nibbles at qs and fifth bits, bit j for element j, in the 32 bits at qh.
PERIGEE_INLINE void five_bit_columns(const LaneRows& rows, size_t qh, size_t qs, Column out) {
  W head[4];
  rows.columns(qh, head);
  nibble_columns(rows, qs, [&](W nibbles, int i) {
    const int byte = i / 2;  // its low or high four bits are elements 4 i .. 4 i + 3
    const int64_t low = 0x0404040400000000 + 0x0101010101010101 * byte, high = low + 0x0808080808080808;
    const W splat = shuffle_bytes(head[0], low, high);
    out[i] = with_sixteens(nibbles, splat, wide32(i % 2 == 0 ? 0x08040201 : int(0x80402010)));
  });
}

PERIGEE_INLINE void fill_block(WideQ5_0, const LaneRows& rows, size_t offset, Column out) {
  five_bit_columns(rows, offset + offsetof(BlockQ5_0, qh), offset + offsetof(BlockQ5_0, qs), out);
}

PERIGEE_INLINE void fill_block(WideQ5_1, const LaneRows& rows, size_t offset, Column out) {
  five_bit_columns(rows, offset + offsetof(BlockQ5_1, qh), offset + offsetof(BlockQ5_1, qs), out);
}

PERIGEE_INLINE void fill_block(WideQ8_0, const LaneRows& rows, size_t offset, Column out) {
  for (int half = 0; half < 2; half++) {
    W v[4];
    rows.columns(offset + offsetof(BlockQ8_0, qs) + size_t(16 * half), v);
    for (int i = 0; i < 4; i++) out[4 * half + i] = kept_signed(v[i]);
  }
}
