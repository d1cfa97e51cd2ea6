// Prefill: quantized weights against many activation rows. Eight weight rows are decoded 256 elements at a time into a
// panel that stays in L1, with rows along the vectors, and every activation row meets the panel before the next is
// decoded. A register tile is 8 rows x up to 4 activation rows.
//
// Two panels: Panel8 keeps codes 0..63 as bytes for the relaxed 8-bit dot and applies sub-block scales to the sums;
// Panel16 holds code * scale as 16 bits (at most 4096 in magnitude), which needs no flush inside a superblock.

constexpr uint32_t kPanelRows = 8, kGroups = 2;  // a group is the 4 rows of one vector of sums
constexpr uint32_t kPanelCols = 256;
constexpr uint32_t kPanelTokens = 64;  // activation rows per pass: their lane sums take 8 KiB of stack

// 256 elements of one weight row, decoded.
struct RowCodes {
  alignas(16) int8_t q[256];
  alignas(16) int16_t scale[16];  // superblocks: one per 16 elements
  alignas(16) int16_t min[16];    // one per 16, or per 32 (Format::kMins == 8)
  alignas(16) float d[8], m[8];   // one per block
};

// A format without SIMD decoding: by quant/dequantize.h.
template <typename BlockType, bool kMin>
struct PlainFormat {
  using Block = BlockType;
  static constexpr bool kHasMin = kMin;
  static constexpr bool kSuper = sizeof(Block) > 64;
  static constexpr int kOffset = 0, kMins = 16;

  static void fill(const Block* blocks, uint32_t count, RowCodes& out) {
    if constexpr (kSuper) {
      Codes256 codes;
      unpack(blocks[0], codes);
      out.d[0] = codes.d;
      out.m[0] = codes.dmin;
      __builtin_memcpy(out.q, codes.q, 256);
      for (int s = 0; s < 16; s++) {
        out.scale[s] = codes.scale[s];
        out.min[s] = codes.min[s];
      }
    } else {
      for (uint32_t b = 0; b < count; b++) {
        Codes32 codes;
        unpack(blocks[b], codes);
        out.d[b] = codes.d;
        out.m[b] = codes.m;
        __builtin_memcpy(out.q + 32 * b, codes.q, 32);
      }
    }
  }
};

// The fast formats of formats.inl.
template <typename Format>
struct FastFormat : Format {
  using Block = typename Format::Block;
  static constexpr bool kSuper = sizeof(Block) > 64;
  static constexpr int kMins = Format::kHasMin ? 8 : 16;

  static void fill(const Block* blocks, uint32_t count, RowCodes& out) {
    if constexpr (kSuper) {
      fill_superblock(blocks[0], out);
    } else {
      for (uint32_t b = 0; b < count; b += 4) {
        const auto* heads = reinterpret_cast<const uint8_t*>(&blocks[b].d);
        store(out.d + b, halfs_to_float(gather_heads<false>(heads, sizeof(Block), count - b)));
      }
      for (uint32_t b = 0; b < count; b++) {
        if constexpr (std::is_same_v<Format, FormatQ8_0>) {
          __builtin_memcpy(out.q + 32 * b, blocks[b].qs, 32);
        } else {
          V q[2];
          Format::codes(blocks[b], q);
          store(out.q + 32 * b, q[0]);
          store(out.q + 32 * b + 16, q[1]);
        }
      }
    }
  }

  PERIGEE_INLINE static void fill_superblock(const Block& block, RowCodes& out) {
    fill_chunk<0>(block, out);
    fill_chunk<1>(block, out);
    fill_chunk<2>(block, out);
    fill_chunk<3>(block, out);
    V s0, s1;
    Format::scales(block, s0, s1);
    if constexpr (Format::kSub == 32) {
      store(out.scale, zip_low16(s0, s0));
      store(out.scale + 8, zip_high16(s0, s0));
      store(out.min, s1);
    } else {
      store(out.scale, s0);
      store(out.scale + 8, s1);
    }
    out.d[0] = half_to_float(block.d);
    if constexpr (Format::kHasMin) out.m[0] = half_to_float(block.dmin);
  }

  template <int kChunk>
  PERIGEE_INLINE static void fill_chunk(const Block& block, RowCodes& out) {
    V q[4];
    Format::codes(block, kChunk, q);
    store(out.q + Format::first(kChunk), q[0]);
    store(out.q + Format::first(kChunk) + 16, q[1]);
    store(out.q + Format::second(kChunk), q[2]);
    store(out.q + Format::second(kChunk) + 16, q[3]);
  }
};

// Rows along the vectors: lane j of out[i] is 32-bit lane i of row j.
PERIGEE_INLINE void transpose4(V a, V b, V c, V d, V out[4]) {
  const V ab0 = zip_low32(a, b), ab1 = zip_high32(a, b), cd0 = zip_low32(c, d), cd1 = zip_high32(c, d);
  out[0] = zip_low64(ab0, cd0);
  out[1] = zip_high64(ab0, cd0);
  out[2] = zip_low64(ab1, cd1);
  out[3] = zip_high64(ab1, cd1);
}

// What both panels hold beside the codes.
struct PanelScales {
  V min[8][kGroups];  // 16-bit mins of two neighbouring sub-blocks, row by row
  V d[8][kGroups], m[8][kGroups];

  template <typename Format>
  void fill(const RowCodes rows[kPanelRows], uint32_t blocks) {
    for (uint32_t g = 0; g < kGroups; g++) {
      const RowCodes* r = rows + 4 * g;
      for (uint32_t b = 0; b < blocks; b += 4) {
        V four[4];
        transpose4(load(r[0].d + b), load(r[1].d + b), load(r[2].d + b), load(r[3].d + b), four);
        for (int i = 0; i < 4; i++) d[b + i][g] = four[i];
        if constexpr (Format::kHasMin) {
          transpose4(load(r[0].m + b), load(r[1].m + b), load(r[2].m + b), load(r[3].m + b), four);
          for (int i = 0; i < 4; i++) m[b + i][g] = four[i];
        }
      }
      if constexpr (Format::kHasMin && Format::kSuper) fill_mins(r, g, Format::kMins);
    }
  }

  void fill_mins(const RowCodes r[4], uint32_t g, int count) {
    for (int i = 0; i < count / 8; i++) {
      V pairs[4];
      transpose4(load(r[0].min + 8 * i), load(r[1].min + 8 * i), load(r[2].min + 8 * i), load(r[3].min + 8 * i), pairs);
      for (int p = 0; p < 4; p++) min[4 * i + p][g] = pairs[p];
    }
  }
};

// code * scale as 16 bits: w[i][g] has elements 2 i, 2 i + 1 of the group's 4 rows.
template <typename Format>
struct Panel16 : PanelScales {
  static constexpr bool kUnsigned = false, kOffsetAsMins = false;
  V w[kPanelCols / 2][kGroups];

  PERIGEE_INLINE static V scaled(V codes, const RowCodes& row, int sub) {
    if constexpr (Format::kOffset != 0) codes = sub16(codes, splat16(Format::kOffset));
    if constexpr (Format::kSuper) codes = mul16(codes, splat16(row.scale[sub]));
    return codes;
  }

  void fill(const RowCodes rows[kPanelRows], uint32_t blocks) {
    PanelScales::fill<Format>(rows, blocks);
    const uint32_t cols = Format::kSuper ? 256 : 32 * blocks;
    for (uint32_t g = 0; g < kGroups; g++)
      for (uint32_t c = 0; c < cols; c += 8) {
        const RowCodes* r = rows + 4 * g;
        V pairs[4];
        transpose4(scaled(load_widen8(r[0].q + c), r[0], c / 16), scaled(load_widen8(r[1].q + c), r[1], c / 16),
                   scaled(load_widen8(r[2].q + c), r[2], c / 16), scaled(load_widen8(r[3].q + c), r[3], c / 16), pairs);
        for (int p = 0; p < 4; p++) w[c / 2 + p][g] = pairs[p];
      }
  }

  // Activation rows as this panel reads them: 16 bits.
  template <int kT>
  struct Tokens {
    alignas(16) int16_t q[kT][kPanelCols];

    PERIGEE_INLINE void take(const int8_t* const x[kT], uint32_t cols) {
      for (int t = 0; t < kT; t++)
        for (uint32_t c = 0; c < cols; c += 8) store(q[t] + c, load_widen8(x[t] + c));
    }
  };

  // Sums over elements [from, from + kCount).
  template <int kT, int kCount>
  PERIGEE_INLINE void dots(const Tokens<kT>& tokens, uint32_t from, V isum[kT][kGroups]) const {
    for (int t = 0; t < kT; t++)
      for (uint32_t g = 0; g < kGroups; g++) isum[t][g] = zero();
    for (uint32_t c = from; c < from + kCount; c += 2) {
      const V* pair = w[c / 2];
      for (int t = 0; t < kT; t++) {
        const V x = load_splat32(tokens.q[t] + c);
        for (uint32_t g = 0; g < kGroups; g++) isum[t][g] = add32(isum[t][g], dot16(pair[g], x));
      }
    }
  }
};

// Codes as bytes: w[i][g] has elements 4 i .. 4 i + 3 of the group's 4 rows.
template <typename Format>
struct Panel8 : PanelScales {
  static constexpr bool kUnsigned = true, kOffsetAsMins = Format::kSuper && Format::kOffset != 0;
  V w[kPanelCols / 4][kGroups];
  V scale[16][kGroups];  // 16-bit, each row's twice

  // 32-bit lanes of 4 elements whose products still fit 16 bits when added up.
  static constexpr int kRun = Format::kMax <= 15 ? 8 : Format::kMax <= 31 ? 4 : 2;
  static_assert(kRun * 2 * Format::kMax * 127 < 32768);

  void fill(RowCodes rows[kPanelRows], uint32_t blocks) {
    const uint32_t cols = Format::kSuper ? 256 : 32 * blocks;
    for (uint32_t g = 0; g < kGroups; g++) {
      RowCodes* r = rows + 4 * g;
      for (uint32_t c = 0; c < cols; c += 16) {
        V quads[4];
        transpose4(load(r[0].q + c), load(r[1].q + c), load(r[2].q + c), load(r[3].q + c), quads);
        for (int p = 0; p < 4; p++) w[c / 4 + p][g] = quads[p];
      }
      if constexpr (Format::kSuper) {
        fill_scales(r, g, 0);
        fill_scales(r, g, 8);
        if constexpr (kOffsetAsMins) {  // the offset's share: 32 * scale per 16 elements
          static_assert(Format::kOffset == 32);
          for (int i = 0; i < 4; i++)
            for (int s = 0; s < 16; s += 8) store(r[i].min + s, shift_left16(load(r[i].scale + s), 5));
          fill_mins(r, g, 16);
        }
      }
    }
    PanelScales::fill<Format>(rows, blocks);
  }

  // Scales s .. s + 7 of four rows.
  PERIGEE_INLINE void fill_scales(const RowCodes r[4], uint32_t g, int s) {
    const V a = load(r[0].scale + s), b = load(r[1].scale + s), c = load(r[2].scale + s), d = load(r[3].scale + s);
    const V ab[2] = {zip_low16(a, b), zip_high16(a, b)}, cd[2] = {zip_low16(c, d), zip_high16(c, d)};
    for (int i = 0; i < 2; i++) {
      const V low = zip_low32(ab[i], cd[i]), high = zip_high32(ab[i], cd[i]);  // 4 rows' scale | 4 rows' next scale
      scale[s + 4 * i][g] = zip_low16(low, low);
      scale[s + 4 * i + 1][g] = zip_high16(low, low);
      scale[s + 4 * i + 2][g] = zip_low16(high, high);
      scale[s + 4 * i + 3][g] = zip_high16(high, high);
    }
  }

  template <int kT>
  struct Tokens {
    const int8_t* q[kT];

    PERIGEE_INLINE void take(const int8_t* const x[kT], uint32_t) {
      for (int t = 0; t < kT; t++) q[t] = x[t];
    }
  };

  template <int kT, int kCount>
  PERIGEE_INLINE void dots(const Tokens<kT>& tokens, uint32_t from, V isum[kT][kGroups]) const {
    for (int t = 0; t < kT; t++)
      for (uint32_t g = 0; g < kGroups; g++) isum[t][g] = zero();
    for (uint32_t c = from; c < from + kCount; c += 4 * kRun) {
      V run[kT][kGroups];
      PERIGEE_UNROLL
      for (int i = 0; i < kRun; i++) {
        const V* quad = w[c / 4 + i];
        for (int t = 0; t < kT; t++) {
          const V x = load_splat32(tokens.q[t] + c + 4 * i);
          for (uint32_t g = 0; g < kGroups; g++)
            run[t][g] = i == 0 ? dot8(x, quad[g]) : add16(run[t][g], dot8(x, quad[g]));
        }
      }
      for (int t = 0; t < kT; t++)
        for (uint32_t g = 0; g < kGroups; g++)
          isum[t][g] = add32(isum[t][g], Format::kSuper ? dot16(run[t][g], scale[c / 16][g]) : pair_sums16(run[t][g]));
    }
  }
};
