// Decode: quantized weights against a few activation rows. Each weight row is one sequential stream, unpacked once
// for all activation rows; elements lie along the vectors. Four blocks make a group: rule 2's four lanes.

// Four vectors of 16 x i32 to the four sums of their lanes.
PERIGEE_INLINE __m128i sums_of_four(W a, W b, W c, W d) {
  const W ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const W cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const W sums = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// The sum of each 128-bit quarter's 4 x i32.
PERIGEE_INLINE __m128i quarter_sums(W v) {
  v = _mm512_add_epi32(v, _mm512_shuffle_epi32(v, _MM_PERM_BADC));
  v = _mm512_add_epi32(v, _mm512_shuffle_epi32(v, _MM_PERM_CDAB));
  const W quarters = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
  return _mm512_castsi512_si128(_mm512_permutexvar_epi32(quarters, v));
}

// d of kCount blocks (zero beyond), and their dmin or m where the next half holds one.
template <bool kHasMin, typename Block, int kCount>
PERIGEE_INLINE void group_scales(const Block* w, __m128& d, __m128& m) {
  uint64_t halfs[2] = {};
  for (int i = 0; i < kCount; i++) {
    halfs[0] |= uint64_t(w[i].d) << 16 * i;
    if constexpr (kHasMin) {
      uint16_t next;
      __builtin_memcpy(&next, reinterpret_cast<const uint8_t*>(&w[i].d) + 2, 2);
      halfs[1] |= uint64_t(next) << 16 * i;
    }
  }
  d = _mm_maskz_cvtph_ps(15, _mm_cvtsi64_si128(int64_t(halfs[0])));
  m = kHasMin ? _mm_maskz_cvtph_ps(15, _mm_cvtsi64_si128(int64_t(halfs[1]))) : _mm_setzero_ps();
}

// sum += scale * (codes . x), per 16-bit pair of scale. The largest 16-bit sum of two products is 2 * 127 * 127.
template <bool kSigned>
PERIGEE_INLINE W scaled_dot(W sum, W codes, W x, W scale) {
  if constexpr (kSigned) {
    x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(codes), _mm512_setzero_si512(), x);
    codes = _mm512_abs_epi8(codes);
  }
  return _mm512_dpwssd_epi32(sum, _mm512_maddubs_epi16(codes, x), scale);
}

// What four superblocks meet of one activation row: from block b on, or for short rows the row's own one or two again
// and again.
struct SuperX {
  const int8_t* q;       // of the group's first superblock
  const int16_t* sum16;  // the same
  W sum32;               // [4][8]
  __m128 d;
};

// The group's sums of codes * scales * x, and of mins * sums of x.
template <int kN>
struct GroupSums {
  __m128i isum[kN], msum[kN];
};

// 16-bit scales and mins of four superblocks of Q4_K or Q5_K, [4][8], from their first 16 bytes: d, dmin, 12 packed bytes.
PERIGEE_INLINE void k4_scales(W heads, W& scale, W& min) {
  const auto words = [](uint64_t low, uint64_t high) {  // the same in every quarter
    const int64_t l = int64_t(low), h = int64_t(high);
    return _mm512_set_epi64(h, l, h, l, h, l, h, l);
  };
  constexpr uint64_t kNone = ~uint64_t{0};
  const auto at = [](uint64_t byte) { return 0x8003800280018000 + byte * 0x0001000100010001; };  // four bytes as words
  const auto bytes = [heads, words](uint64_t a, uint64_t b) { return _mm512_shuffle_epi8(heads, words(a, b)); };
  const W upper = words(0, 0x0030003000300030);
  const W nibbles = words(0x003f003f003f003f, 0x000f000f000f000f);
  // Sub-blocks 0..3 have six bits in place, 4..7 a nibble and two bits above those six. 0xf8: a | (b & c).
  const W scale_low = _mm512_and_si512(bytes(at(4), at(12)), nibbles);
  scale = _mm512_ternarylogic_epi64(scale_low, _mm512_srli_epi16(bytes(kNone, at(4)), 2), upper, 0xf8);
  const W shifted = _mm512_srlv_epi16(bytes(at(8), at(12)), words(0, 0x0004000400040004));
  const W min_low = _mm512_and_si512(shifted, nibbles);
  min = _mm512_ternarylogic_epi64(min_low, _mm512_srli_epi16(bytes(kNone, at(8)), 2), upper, 0xf8);
}

template <typename Format, int kN, int kCount>
PERIGEE_INLINE void k4_group(const typename Format::Block* w, const SuperX x[kN], uint32_t mask, GroupSums<kN>& out,
                             __m128& d, __m128& dmin) {
  const auto head = [w](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(&w[i < kCount ? i : 0])); };
  const W heads = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(head(1), head(0))),
                                     _mm256_set_m128i(head(3), head(2)), 1);
  W scale, min;
  k4_scales(heads, scale, min);
  alignas(64) int16_t scales[32];
  _mm512_store_si512(scales, scale);
  W sum[4][kN];
  for (int i = 0; i < kCount; i++) {
    const W own = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(scales + 8 * i)));
    W q[4];
    Format::codes(w[i], q);
    for (int t = 0; t < kN; t++) sum[i][t] = _mm512_setzero_si512();
    for (int c = 0; c < 4; c++) {
      const W pair = _mm512_shuffle_epi8(own, halves16(0x0100 + 0x0404 * c, 0x0302 + 0x0404 * c));
      for (int t = 0; t < kN; t++)
        sum[i][t] = scaled_dot<false>(sum[i][t], q[c], _mm512_loadu_si512(x[t].q + 256 * (i & mask) + 64 * c), pair);
    }
  }
  for (int t = 0; t < kN; t++) {
    for (int i = kCount; i < 4; i++) sum[i][t] = _mm512_setzero_si512();
    out.isum[t] = sums_of_four(sum[0][t], sum[1][t], sum[2][t], sum[3][t]);
    out.msum[t] = quarter_sums(_mm512_madd_epi16(min, x[t].sum32));
  }
  group_scales<true, typename Format::Block, kCount>(w, d, dmin);
}

// Superblocks whose scales go with 16 elements.
template <typename Format, int kN, int kCount>
PERIGEE_INLINE void k16_group(const typename Format::Block* w, const SuperX x[kN], uint32_t mask, GroupSums<kN>& out,
                              __m128& d, __m128& dmin) {
  W sum[4][kN], msum[4][kN];
  for (int i = 0; i < kCount; i++) {
    __m256i scale, min;
    Format::scales(w[i], scale, min);
    W q[4];
    Format::codes(w[i], q);
    const __m256i offset = _mm256_mullo_epi16(scale, _mm256_set1_epi16(-Format::kOffset));
    for (int t = 0; t < kN; t++) {
      const __m256i sums = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x[t].sum16 + 16 * (i & mask)));
      sum[i][t] = _mm512_setzero_si512();
      if constexpr (Format::kOffset != 0) sum[i][t] = _mm512_zextsi256_si512(_mm256_madd_epi16(offset, sums));
      if constexpr (Format::kHasMin) msum[i][t] = _mm512_zextsi256_si512(_mm256_madd_epi16(min, sums));
    }
    for (int c = 0; c < 4; c++) {
      const W index = quarters(four16(4 * c), four16(4 * c + 1), four16(4 * c + 2), four16(4 * c + 3));
      const W own = _mm512_permutexvar_epi16(index, _mm512_castsi256_si512(scale));
      for (int t = 0; t < kN; t++)
        sum[i][t] =
            scaled_dot<Format::kSigned>(sum[i][t], q[c], _mm512_loadu_si512(x[t].q + 256 * (i & mask) + 64 * c), own);
    }
  }
  for (int t = 0; t < kN; t++) {
    for (int i = kCount; i < 4; i++) sum[i][t] = msum[i][t] = _mm512_setzero_si512();
    out.isum[t] = sums_of_four(sum[0][t], sum[1][t], sum[2][t], sum[3][t]);
    if constexpr (Format::kHasMin) out.msum[t] = sums_of_four(msum[0][t], msum[1][t], msum[2][t], msum[3][t]);
  }
  group_scales<Format::kHasMin, typename Format::Block, kCount>(w, d, dmin);
}

// Rule 2's terms of kCount superblocks that follow one another in memory; superblock i meets the activations' i & mask.
template <typename Format, int kN, int kCount>
PERIGEE_INLINE void super_terms(const typename Format::Block* w, const SuperX x[kN], uint32_t mask, __m128 terms[kN]) {
  GroupSums<kN> sums;
  __m128 d, dmin;
  if constexpr (Format::kSub == 32) k4_group<Format, kN, kCount>(w, x, mask, sums, d, dmin);
  else k16_group<Format, kN, kCount>(w, x, mask, sums, d, dmin);
  for (int t = 0; t < kN; t++) {
    __m128 value = _mm_mul_ps(d, _mm_cvtepi32_ps(sums.isum[t]));
    if constexpr (Format::kHasMin) value = _mm_sub_ps(value, _mm_mul_ps(dmin, _mm_cvtepi32_ps(sums.msum[t])));
    terms[t] = _mm_mul_ps(x[t].d, value);
  }
}

// Calls body(count) with the constant 1, 2, 3 or 4.
template <typename Body>
PERIGEE_INLINE void with_count(uint32_t count, Body body) {
  if (count == 4) body(std::integral_constant<int, 4>());
  else if (count == 3) body(std::integral_constant<int, 3>());
  else if (count == 2) body(std::integral_constant<int, 2>());
  else body(std::integral_constant<int, 1>());
}

// Rule 2: (l0 + l2) + (l1 + l3).
PERIGEE_INLINE float fold_lanes(__m128 l) {
  const __m128 pairs = _mm_add_ps(l, _mm_movehl_ps(l, l));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1)));
}

template <typename Format, int kN>
PERIGEE_NOINLINE void wide_gemv_super(const MatmulArgs& a) {
  const uint32_t blocks = a.cols / 256;
  Q8_KRow rows[kN];
  for (int t = 0; t < kN; t++) rows[t] = q8_k_row(activation(a, t), a.cols);
  const auto* w = reinterpret_cast<const typename Format::Block*>(a.w);
  for (uint32_t r = 0; r < a.rows; r++, w += blocks) {
    __m128 acc[kN];
    for (int t = 0; t < kN; t++) acc[t] = _mm_setzero_ps();
    const auto group = [&](auto count, uint32_t b) {
      constexpr int kCount = decltype(count)::value;
      SuperX x[kN];
      __m128 terms[kN];
      for (int t = 0; t < kN; t++) {
        const Q8_KRow& row = rows[t];
        x[t] = {row.q + 256 * b, row.sum16 + 16 * b,
                _mm512_maskz_loadu_epi64(0xff >> (8 - 2 * kCount), row.sum32 + 8 * b), _mm_load_ps(row.d + b)};
      }
      super_terms<Format, kN, kCount>(w + b, x, 3, terms);
      for (int t = 0; t < kN; t++) acc[t] = _mm_add_ps(acc[t], terms[t]);
    };
    uint32_t b = 0;
    for (; b + 4 <= blocks; b += 4) group(std::integral_constant<int, 4>(), b);
    if (b < blocks) with_count(blocks - b, [&](auto count) { group(count, b); });
    for (int t = 0; t < kN; t++) a.y[t * a.y_stride + r] = fold_lanes(acc[t]);
  }
}

// Rows of one or two superblocks, the family's narrow experts: a group of four holds several rows, so that no lane idles.
template <typename Format, int kN>
PERIGEE_NOINLINE void wide_gemv_short(const MatmulArgs& a) {
  const uint32_t blocks = a.cols / 256, mask = blocks - 1, group_rows = 4 / blocks;
  SuperX x[kN];
  for (int t = 0; t < kN; t++) {
    const Q8_KRow row = q8_k_row(activation(a, t), a.cols);
    alignas(64) int16_t sum32[4][8];
    alignas(16) float d[4];
    for (uint32_t i = 0; i < 4; i++) {
      __builtin_memcpy(sum32[i], row.sum32 + 8 * (i & mask), 16);
      d[i] = row.d[i & mask];
    }
    x[t] = {row.q, row.sum16, _mm512_load_si512(sum32), _mm_load_ps(d)};
  }
  const auto* w = reinterpret_cast<const typename Format::Block*>(a.w);
  for (uint32_t r = 0; r < a.rows; r += group_rows, w += 4) {
    const uint32_t rows = a.rows - r < group_rows ? a.rows - r : group_rows;
    __m128 terms[kN];
    with_count(rows * blocks, [&](auto count) { super_terms<Format, kN, decltype(count)::value>(w, x, mask, terms); });
    for (int t = 0; t < kN; t++) {
      alignas(16) float lanes[4];
      _mm_store_ps(lanes, _mm_add_ps(_mm_setzero_ps(), terms[t]));  // every lane starts at +0.0
      float* y = a.y + t * a.y_stride + r;
      for (uint32_t i = 0; i < rows; i++) y[i] = blocks == 1 ? lanes[i] : lanes[2 * i] + lanes[2 * i + 1];
    }
  }
}

// --- blocks of 32 -------------------------------------------------------------------------------------------------------

// The sums of four blocks' codes * x, from two blocks a vector.
PERIGEE_INLINE __m128i block_sums(W codes01, W codes23, const int8_t* x) {
  const W a = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes01, _mm512_loadu_si512(x));
  const W b = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes23, _mm512_loadu_si512(x + 64));
  return quarter_sums(_mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd)));
}

// acc += the terms of four blocks.
template <typename Format, int kN>
PERIGEE_INLINE void add_blocks(const typename Format::Block* w, const int8_t* const q[kN], const Q8_0Row x[kN],
                               uint32_t b, __m128 acc[kN]) {
  const W codes01 = Format::codes(w[0], w[1]), codes23 = Format::codes(w[2], w[3]);
  __m128 d, m;
  group_scales<Format::kHasMin, typename Format::Block, 4>(w, d, m);
  for (int t = 0; t < kN; t++) {
    const __m128i xsum = _mm_load_si128(reinterpret_cast<const __m128i*>(x[t].sum + b));
    __m128i isum = block_sums(codes01, codes23, q[t]);
    constexpr int kShift = Format::kOffset == 8 ? 3 : Format::kOffset == 16 ? 4 : 7;
    static_assert(Format::kOffset == 0 || Format::kOffset == 1 << kShift);
    if constexpr (Format::kOffset != 0) isum = _mm_sub_epi32(isum, _mm_slli_epi32(xsum, kShift));
    const __m128 xd = _mm_load_ps(x[t].d + b), value = _mm_cvtepi32_ps(isum);
    if constexpr (Format::kHasMin)
      acc[t] =
          _mm_add_ps(acc[t], _mm_mul_ps(xd, _mm_add_ps(_mm_mul_ps(d, value), _mm_mul_ps(m, _mm_cvtepi32_ps(xsum)))));
    else acc[t] = _mm_add_ps(acc[t], _mm_mul_ps(_mm_mul_ps(d, xd), value));
  }
}

template <typename Format, int kN>
PERIGEE_NOINLINE void wide_gemv_blocks(const MatmulArgs& a) {
  using Block = typename Format::Block;
  const uint32_t blocks = a.cols / 32, whole = blocks & ~3u, rest = blocks - whole;
  Q8_0Row x[kN];
  alignas(64) int8_t tail[kN][128] = {};  // the last one to three blocks, filled up with zeros
  const int8_t* tails[kN];
  for (int t = 0; t < kN; t++) {
    x[t] = q8_0_row(activation(a, t), a.cols);
    __builtin_memcpy(tail[t], x[t].q + 32 * whole, 32 * rest);
    tails[t] = tail[t];
  }
  const auto* w = reinterpret_cast<const Block*>(a.w);
  for (uint32_t r = 0; r < a.rows; r++, w += blocks) {
    __m128 acc[kN];
    for (int t = 0; t < kN; t++) acc[t] = _mm_setzero_ps();
    for (uint32_t b = 0; b < whole; b += 4) {
      const int8_t* q[kN];
      for (int t = 0; t < kN; t++) q[t] = x[t].q + 32 * b;
      add_blocks<Format, kN>(w + b, q, x, b, acc);
    }
    if (rest != 0) {
      Block last[4] = {};
      __builtin_memcpy(last, w + whole, rest * sizeof(Block));
      add_blocks<Format, kN>(last, tails, x, whole, acc);
    }
    for (int t = 0; t < kN; t++) a.y[t * a.y_stride + r] = fold_lanes(acc[t]);
  }
}

template <typename Format, int kN>
void wide_gemv(const MatmulArgs& a) {
  if constexpr (!Format::kSuper) wide_gemv_blocks<Format, kN>(a);
  else if (a.cols <= 512) wide_gemv_short<Format, kN>(a);
  else wide_gemv_super<Format, kN>(a);
}
