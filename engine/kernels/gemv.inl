// Decode: quantized weights against one to four activation rows. Each weight row is one sequential stream, read and
// unpacked once; elements lie along the vectors, and the sums of four blocks fold together into rule 2's four lanes.

template <int kN>
PERIGEE_INLINE void store_results(const MatmulArgs& a, uint32_t r, const V acc[kN]) {
  for (int t = 0; t < kN; t++) a.y[t * a.y_stride + r] = fold4(acc[t]);
}

// 64 elements: adds scale * (codes . x) to four partial sums.
template <typename Format, int kChunk>
PERIGEE_INLINE V chunk_dot(const V q[4], const int16_t* scale, const int8_t* x, V sum) {
  constexpr int first = Format::first(kChunk), second = Format::second(kChunk);
  const V a = dot8(load(x + first), q[0]), b = dot8(load(x + first + 16), q[1]);
  const V c = dot8(load(x + second), q[2]), d = dot8(load(x + second + 16), q[3]);
  // Neighbouring sub-blocks are interleaved, so that one 16-bit dot applies both scales. The largest 16-bit sum is
  // 8 * 31 * 127 (Q5_K) or 4 * 63 * 127 (Q6_K), below 2^15.
  if constexpr (Format::kSub == 32) {
    const V ab = add16(a, b), cd = add16(c, d);
    return add32(sum, dot16(add16(zip_low16(ab, cd), zip_high16(ab, cd)), load_splat32(scale + 2 * kChunk)));
  } else {
    sum = add32(sum, dot16(add16(zip_low16(a, b), zip_high16(a, b)), load_splat32(scale + first / 16)));
    return add32(sum, dot16(add16(zip_low16(c, d), zip_high16(c, d)), load_splat32(scale + second / 16)));
  }
}

template <typename Format, int kChunk, int kN>
PERIGEE_INLINE void chunk_dots(const typename Format::Block& block, const int16_t* scale, const Q8_KRow x[kN],
                               uint32_t b, V sum[kN]) {
  V q[4];
  Format::codes(block, kChunk, q);
  for (int t = 0; t < kN; t++) sum[t] = chunk_dot<Format, kChunk>(q, scale, x[t].q + 256 * b, sum[t]);
}

// How a superblock meets activation rows, in 128-bit vectors: partial sums, and how those of four superblocks fold. A table
// with wider vectors brings its own.
template <typename FormatType>
struct SuperDots {
  using Format = FormatType;
  using Sum = V;

  template <int kN>
  PERIGEE_INLINE static void dots(const typename Format::Block& block, const Q8_KRow x[kN], uint32_t b, V isum[kN],
                                  V msum[kN]) {
    V s0, s1;  // kSub 32: scales, mins; kSub 16: scales 0..7, 8..15
    Format::scales(block, s0, s1);
    alignas(16) int16_t scale[16];  // by way of memory a pair of scales is splat by its load
    store(scale, s0);
    if constexpr (Format::kSub == 16) store(scale + 8, s1);
    for (int t = 0; t < kN; t++) {
      if constexpr (Format::kSub == 32) {
        isum[t] = zero();
        msum[t] = dot16(s1, load(x[t].sum32 + 8 * b));
      } else {
        const V sums = add32(dot16(s0, load(x[t].sum16 + 16 * b)), dot16(s1, load(x[t].sum16 + 16 * b + 8)));
        isum[t] = sub32(zero(), shift_left32(sums, 5));  // codes are 32 above their meaning
        static_assert(Format::kOffset == 32);
      }
    }
    chunk_dots<Format, 0, kN>(block, scale, x, b, isum);
    chunk_dots<Format, 1, kN>(block, scale, x, b, isum);
    chunk_dots<Format, 2, kN>(block, scale, x, b, isum);
    chunk_dots<Format, 3, kN>(block, scale, x, b, isum);
  }

  PERIGEE_INLINE static V fold(V a, V b, V c, V d) { return sums_of_four(a, b, c, d); }
};

// d (and the dmin or m that follows it) of up to four blocks.
template <bool kHasMin, typename Block>
PERIGEE_INLINE void block_scales(const Block* blocks, uint32_t count, V& d, V& m) {
  const V heads = gather_heads<kHasMin>(reinterpret_cast<const uint8_t*>(&blocks->d), sizeof(*blocks), count);
  if constexpr (kHasMin) {
    d = halfs_to_float(bit_and(heads, splat32(0xffff)));
    m = halfs_to_float(shift_right32(heads, 16));
  } else {
    d = halfs_to_float(heads);
  }
}

// Rule 2's term for four superblocks.
template <bool kHasMin>
PERIGEE_INLINE V superblock_terms(V xd, V d, V dmin, V isum, V msum) {
  const V value = mul(d, to_float(isum));
  return mul(xd, kHasMin ? sub(value, mul(dmin, to_float(msum))) : value);
}

// Rule 2's terms of `count` (at most four) superblocks that follow one another in memory; superblock i meets the
// activations' b + (i & mask), whose scales are xd.
template <typename Dots, int kN>
PERIGEE_INLINE void group_terms(const typename Dots::Format::Block* w, uint32_t count, const Q8_KRow x[kN], uint32_t b,
                                uint32_t mask, const V xd[kN], V terms[kN]) {
  using Format = typename Dots::Format;
  using Sum = typename Dots::Sum;
  Sum isum[4][kN];
  V msum[4][kN];
  for (uint32_t i = 0; i < count; i++) Dots::template dots<kN>(w[i], x, b + (i & mask), isum[i], msum[i]);
  for (uint32_t i = count; i < 4; i++)
    for (int t = 0; t < kN; t++) isum[i][t] = Sum(), msum[i][t] = zero();
  V d, dmin;
  block_scales<Format::kHasMin>(w, count, d, dmin);
  for (int t = 0; t < kN; t++) {
    const V i4 = Dots::fold(isum[0][t], isum[1][t], isum[2][t], isum[3][t]);
    const V m4 = Format::kHasMin ? sums_of_four(msum[0][t], msum[1][t], msum[2][t], msum[3][t]) : zero();
    terms[t] = superblock_terms<Format::kHasMin>(xd[t], d, dmin, i4, m4);
  }
}

template <typename Dots, int kN>
PERIGEE_NOINLINE void gemv_superblocks(const MatmulArgs& a) {
  const uint32_t blocks = a.cols / 256;
  Q8_KRow x[kN];
  for (int t = 0; t < kN; t++) x[t] = q8_k_row(activation(a, t), a.cols);
  const auto* w = reinterpret_cast<const typename Dots::Format::Block*>(a.w);
  for (uint32_t r = 0; r < a.rows; r++, w += blocks) {
    V acc[kN], xd[kN], terms[kN];
    for (int t = 0; t < kN; t++) acc[t] = zero();
    for (uint32_t b = 0; b < blocks; b += 4) {
      for (int t = 0; t < kN; t++) xd[t] = load(x[t].d + b);
      group_terms<Dots, kN>(w + b, blocks - b < 4 ? blocks - b : 4, x, b, 3, xd, terms);
      for (int t = 0; t < kN; t++) acc[t] = add(acc[t], terms[t]);
    }
    store_results<kN>(a, r, acc);
  }
}

// Rows of one or two superblocks, the family's narrow experts: a group of four holds several rows, so that no lane idles.
template <typename Dots, int kN>
PERIGEE_NOINLINE void gemv_short_rows(const MatmulArgs& a) {
  const uint32_t blocks = a.cols / 256, mask = blocks - 1, group_rows = 4 / blocks;
  Q8_KRow x[kN];
  V xd[kN], terms[kN];
  for (int t = 0; t < kN; t++) {
    x[t] = q8_k_row(activation(a, t), a.cols);
    alignas(16) const float d[4] = {x[t].d[0], x[t].d[1 & mask], x[t].d[0], x[t].d[1 & mask]};
    xd[t] = load(d);
  }
  const auto* w = reinterpret_cast<const typename Dots::Format::Block*>(a.w);
  for (uint32_t r = 0; r < a.rows; r += group_rows, w += 4) {
    const uint32_t rows = a.rows - r < group_rows ? a.rows - r : group_rows;
    group_terms<Dots, kN>(w, rows * blocks, x, 0, mask, xd, terms);
    for (int t = 0; t < kN; t++) {
      alignas(16) float lanes[4];
      store(lanes, add(zero(), terms[t]));  // every lane starts at +0.0
      float* y = a.y + t * a.y_stride + r;
      for (uint32_t i = 0; i < rows; i++) y[i] = blocks == 1 ? lanes[i] : lanes[2 * i] + lanes[2 * i + 1];
    }
  }
}

// The same for blocks of 32. Partial sums are 4 x i32 for Q8_0, else 8 x i16 (at most 4 * 31 * 127, so that two still add
// up). The offset of unsigned codes comes off later, by the row's sums.
template <typename FormatType>
struct BlockDots {
  using Format = FormatType;
  using Sum = V;

  template <int kN>
  PERIGEE_INLINE static void dots(const typename Format::Block& block, const Q8_0Row x[kN], uint32_t b, V isum[kN]) {
    if constexpr (std::is_same_v<Format, FormatQ8_0>) {
      V q[4];
      for (int i = 0; i < 4; i++) q[i] = load_widen8(block.qs + 8 * i);
      for (int t = 0; t < kN; t++) {
        const int8_t* xq = x[t].q + 32 * b;
        isum[t] = add32(add32(dot16(q[0], load_widen8(xq)), dot16(q[1], load_widen8(xq + 8))),
                        add32(dot16(q[2], load_widen8(xq + 16)), dot16(q[3], load_widen8(xq + 24))));
      }
    } else {
      V q[2];
      Format::codes(block, q);
      for (int t = 0; t < kN; t++) {
        const int8_t* xq = x[t].q + 32 * b;
        isum[t] = add16(dot8(load(xq), q[0]), dot8(load(xq + 16), q[1]));
      }
    }
  }

  PERIGEE_INLINE static V fold(V a, V b, V c, V d) {
    return std::is_same_v<Format, FormatQ8_0> ? sums_of_four(a, b, c, d) : sums_of_four16(a, b, c, d);
  }
};

// Four blocks' sums of code * x, to sums of (code - kOffset) * x.
template <typename Format>
PERIGEE_INLINE V without_offset(V isum, V xsum) {
  if constexpr (Format::kOffset == 8) return sub32(isum, shift_left32(xsum, 3));
  else if constexpr (Format::kOffset == 16) return sub32(isum, shift_left32(xsum, 4));
  else return isum;
}

template <typename Dots, int kN>
PERIGEE_NOINLINE void gemv_blocks(const MatmulArgs& a) {
  using Format = typename Dots::Format;
  using Sum = typename Dots::Sum;
  const uint32_t blocks = a.cols / 32;
  Q8_0Row x[kN];
  for (int t = 0; t < kN; t++) x[t] = q8_0_row(activation(a, t), a.cols);
  const auto* w = reinterpret_cast<const typename Format::Block*>(a.w);
  for (uint32_t r = 0; r < a.rows; r++, w += blocks) {
    V acc[kN];
    for (int t = 0; t < kN; t++) acc[t] = zero();
    for (uint32_t b = 0; b < blocks; b += 4) {
      const uint32_t count = blocks - b < 4 ? blocks - b : 4;
      Sum isum[4][kN];
      for (uint32_t i = 0; i < 4; i++) {
        if (i < count) Dots::template dots<kN>(w[b + i], x, b + i, isum[i]);
        else
          for (int t = 0; t < kN; t++) isum[i][t] = Sum();
      }
      V d, m;
      block_scales<Format::kHasMin>(w + b, count, d, m);
      for (int t = 0; t < kN; t++) {
        const V xd = load(x[t].d + b), xsum = load(x[t].sum + b);
        const V i4 = Dots::fold(isum[0][t], isum[1][t], isum[2][t], isum[3][t]);
        const V value = to_float(without_offset<Format>(i4, xsum));
        if constexpr (Format::kHasMin) acc[t] = add(acc[t], mul(xd, add(mul(d, value), mul(m, to_float(xsum)))));
        else acc[t] = add(acc[t], mul(mul(d, xd), value));
      }
    }
    store_results<kN>(a, r, acc);
  }
}
