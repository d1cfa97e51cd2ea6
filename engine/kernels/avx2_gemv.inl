// Decode: how blocks meet activation rows in 256-bit vectors; the loops are gemv.inl's.

PERIGEE_INLINE V add_halves32(W v) { return add32(low_half(v), high_half(v)); }

// Four vectors of 8 x i32 to the four sums of their lanes.
PERIGEE_INLINE V sums_of_four(W a, W b, W c, W d) {
  const W ab = add32(zip_low32(a, b), zip_high32(a, b)), cd = add32(zip_low32(c, d), zip_high32(c, d));
  return add_halves32(add32(zip_low64(ab, cd), zip_high64(ab, cd)));
}

// The same of 16 x i16; the sums of two lanes must fit 16 bits.
PERIGEE_INLINE V sums_of_four16(W a, W b, W c, W d) {
  const W ab = pair_sums16(add16(zip_low32(a, b), zip_high32(a, b)));
  const W cd = pair_sums16(add16(zip_low32(c, d), zip_high32(c, d)));
  return add_halves32(add32(zip_low64(ab, cd), zip_high64(ab, cd)));
}

template <typename FormatType>
struct WideSuperDots {
  using Format = FormatType;
  using Sum = W;

  template <int kN>
  PERIGEE_INLINE static void dots(const typename Format::Block& block, const Q8_KRow x[kN], uint32_t b, W isum[kN],
                                  V msum[kN]) {
    W q[8];
    Format::codes(block, q);
    if constexpr (Format::kSubs == 8) dots_of_8<kN>(block, q, x, b, isum, msum);
    else dots_of_16<kN>(block, q, x, b, isum, msum);
  }

  PERIGEE_INLINE static V fold(W a, W b, W c, W d) { return sums_of_four(a, b, c, d); }

 private:
  // One scale for each vector of codes.
  template <int kN>
  PERIGEE_INLINE static void dots_of_8(const typename Format::Block& block, const W q[8], const Q8_KRow x[kN],
                                       uint32_t b, W isum[kN], V msum[kN]) {
    W scale;
    V min;
    Format::scales(block, scale, min);
    for (int t = 0; t < kN; t++) {
      isum[t] = wide_zero();
      if constexpr (Format::kHasMin) msum[t] = dot16(min, load(x[t].sum32 + 8 * b));
    }
    PERIGEE_UNROLL
    for (int h = 0; h < 8; h += 4) {
      const W four = h == 0 ? _mm256_unpacklo_epi16(scale, scale) : _mm256_unpackhi_epi16(scale, scale);
      add_dots<kN>(q[h], h, _mm256_shuffle_epi32(four, 0x00), x, b, isum);
      add_dots<kN>(q[h + 1], h + 1, _mm256_shuffle_epi32(four, 0x55), x, b, isum);
      add_dots<kN>(q[h + 2], h + 2, _mm256_shuffle_epi32(four, 0xaa), x, b, isum);
      add_dots<kN>(q[h + 3], h + 3, _mm256_shuffle_epi32(four, 0xff), x, b, isum);
    }
  }

  // One scale for each half of a vector.
  template <int kN>
  PERIGEE_INLINE static void dots_of_16(const typename Format::Block& block, const W q[8], const Q8_KRow x[kN],
                                        uint32_t b, W isum[kN], V msum[kN]) {
    W scale, min;
    Format::scales(block, scale, min);
    const W offset = _mm256_mullo_epi16(scale, wide16(-Format::kOffset));
    for (int t = 0; t < kN; t++) {
      const W sums = load_wide(x[t].sum16 + 16 * b);
      isum[t] = Format::kOffset != 0 ? dot16(offset, sums) : wide_zero();
      if constexpr (Format::kHasMin) msum[t] = add_halves32(dot16(min, sums));
    }
    const W eight[2] = {_mm256_permute4x64_epi64(scale, 0x44), _mm256_permute4x64_epi64(scale, 0xee)};
    PERIGEE_UNROLL
    for (int c = 0; c < 8; c++) {
      const W own = from_halves(splat16(0x0100 + 0x0404 * (c % 4)), splat16(0x0302 + 0x0404 * (c % 4)));
      add_dots<kN>(q[c], c, _mm256_shuffle_epi8(eight[c / 4], own), x, b, isum);
    }
  }

  template <int kN>
  PERIGEE_INLINE static void add_dots(W q, int c, W scale, const Q8_KRow x[kN], uint32_t b, W isum[kN]) {
    for (int t = 0; t < kN; t++)
      isum[t] = in_order(add32(isum[t], dot16(dot8<Format::kSigned>(load_wide(x[t].q + 256 * b + 32 * c), q), scale)));
  }
};

template <typename FormatType>
struct WideBlockDots {
  using Format = FormatType;
  using Sum = W;  // signed codes: 8 x i32; others: 16 x i16, at most 2 * 31 * 127

  template <int kN>
  PERIGEE_INLINE static void dots(const typename Format::Block& block, const Q8_0Row x[kN], uint32_t b, W isum[kN]) {
    const W q = Format::codes(block);
    for (int t = 0; t < kN; t++) {
      const W dot = dot8<Format::kSigned>(load_wide(x[t].q + 32 * b), q);
      isum[t] = Format::kSigned ? pair_sums16(dot) : dot;
    }
  }

  PERIGEE_INLINE static V fold(W a, W b, W c, W d) {
    return Format::kSigned ? sums_of_four(a, b, c, d) : sums_of_four16(a, b, c, d);
  }
};

template <typename Format, int kN>
void wide_gemv(const MatmulArgs& a) {
  if constexpr (!Format::kSuper) gemv_blocks<WideBlockDots<Format>, kN>(a);
  else if (a.cols <= 512) gemv_short_rows<WideSuperDots<Format>, kN>(a);
  else gemv_superblocks<WideSuperDots<Format>, kN>(a);
}
