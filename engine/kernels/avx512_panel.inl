// Prefill: quantized weights against many activation rows. 32 weight rows are decoded 256 elements at a time into a panel
// of 8 KiB with rows along the vectors, four elements of one row in each 32-bit lane, and every activation row meets the
// panel before the next is decoded. A register tile is 32 rows x up to 6 activation rows: 12 sums of a sub-block, 12 of a
// superblock, and one load for every 1.5 dots, of which this takes two a cycle.

constexpr uint32_t kWideGroups = 2, kWideRows = 16 * kWideGroups;  // a group is the 16 rows of one vector of sums
constexpr uint32_t kWideTile = 6;
constexpr uint32_t kWideTokens = 128;  // activation rows per pass: their lane sums take 64 KiB of stack, in L2

using F = __m512;

// out[i] has 32-bit lane i of the 16 rows.
PERIGEE_INLINE void transpose16(const W rows[16], W out[16]) {
  W columns[4][4];  // [k][j]: column j of every quarter, of rows 4 k .. 4 k + 3
  for (int k = 0; k < 4; k++) {
    const W* r = rows + 4 * k;
    const W ab0 = _mm512_unpacklo_epi32(r[0], r[1]), ab1 = _mm512_unpackhi_epi32(r[0], r[1]);
    const W cd0 = _mm512_unpacklo_epi32(r[2], r[3]), cd1 = _mm512_unpackhi_epi32(r[2], r[3]);
    columns[k][0] = _mm512_unpacklo_epi64(ab0, cd0);
    columns[k][1] = _mm512_unpackhi_epi64(ab0, cd0);
    columns[k][2] = _mm512_unpacklo_epi64(ab1, cd1);
    columns[k][3] = _mm512_unpackhi_epi64(ab1, cd1);
  }
  for (int j = 0; j < 4; j++) {
    const W even0 = _mm512_shuffle_i32x4(columns[0][j], columns[1][j], 0x88);
    const W odd0 = _mm512_shuffle_i32x4(columns[0][j], columns[1][j], 0xdd);
    const W even1 = _mm512_shuffle_i32x4(columns[2][j], columns[3][j], 0x88);
    const W odd1 = _mm512_shuffle_i32x4(columns[2][j], columns[3][j], 0xdd);
    out[j] = _mm512_shuffle_i32x4(even0, even1, 0x88);
    out[4 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    out[8 + j] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
    out[12 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
  }
}

// Superblocks with signed meanings keep signed codes and meet activations 128 above theirs; what that adds to a row's
// sum depends on the weights alone (excess). The others keep unsigned codes.
template <typename Format>
constexpr bool kShiftedX = Format::kSuper && (Format::kSigned || Format::kOffset != 0);

template <typename Format>
struct WidePanel {
  static constexpr int kSubs = Format::kSuper ? 256 / Format::kSub : 1;
  static constexpr int kMinPairs = Format::kSuper && Format::kHasMin ? kSubs / 2 : 0;
  static constexpr int kBlocks = Format::kSuper ? 1 : 8;

  W w[64][kWideGroups];  // elements 4 i .. 4 i + 3
  W scale[kSubs][kWideGroups];
  W min[kMinPairs + 1][kWideGroups];  // 16-bit mins of two neighbouring sub-blocks
  W excess[kWideGroups];
  F d[kBlocks][kWideGroups], m[kBlocks][kWideGroups];

  // Four codes of each row times four elements of an activation row.
  PERIGEE_INLINE static W dot(W sum, W codes, W x) {
    return kShiftedX<Format> ? _mm512_dpbusd_epi32(sum, x, codes) : _mm512_dpbusd_epi32(sum, codes, x);
  }

  // Group g of the rows at `blocks`, `stride` blocks apart, the last of `rows` standing in for those beyond; `count` blocks
  // of each (superblocks: 1).
  void fill(const typename Format::Block* blocks, size_t stride, uint32_t rows, uint32_t count, uint32_t g) {
    const typename Format::Block* row[16];
    for (uint32_t r = 0; r < 16; r++) row[r] = blocks + (16 * g + r < rows ? 16 * g + r : rows - 1) * stride;
    W codes[4][16], columns[16];
    for (uint32_t r = 0; r < 16; r++) {
      W q[4];
      if constexpr (Format::kSuper) Format::codes(*row[r], q);
      else fill_pairs(row[r], count, q);
      for (int c = 0; c < 4; c++)
        codes[c][r] = kShiftedX<Format> ? _mm512_sub_epi8(q[c], _mm512_set1_epi8(Format::kOffset)) : q[c];
    }
    for (int c = 0; c < 4; c++) {
      transpose16(codes[c], columns);
      for (int i = 0; i < 16; i++) w[16 * c + i][g] = columns[i];
    }
    fill_d(row, count, g);
    if constexpr (Format::kSuper) fill_scales(row, g);
    if constexpr (kShiftedX<Format>) fill_excess(g);
  }

  PERIGEE_INLINE static void fill_pairs(const typename Format::Block* row, uint32_t count, W q[4]) {
    static constexpr typename Format::Block kNone = {};
    for (uint32_t c = 0; c < 4; c++) {
      const auto& first = 2 * c < count ? row[2 * c] : kNone;
      const auto& second = 2 * c + 1 < count ? row[2 * c + 1] : kNone;
      q[c] = Format::codes(first, second);
    }
  }

  void fill_d(const typename Format::Block* const row[16], uint32_t count, uint32_t g) {
    alignas(32) uint16_t halfs[2][kBlocks][16];
    for (uint32_t r = 0; r < 16; r++)
      for (uint32_t b = 0; b < count; b++) {
        const auto& block = row[r][b];
        halfs[0][b][r] = block.d;
        if constexpr (Format::kHasMin)
          __builtin_memcpy(&halfs[1][b][r], reinterpret_cast<const uint8_t*>(&block.d) + 2, 2);
      }
    for (uint32_t b = 0; b < count; b++) {
      d[b][g] = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(halfs[0][b])));
      if constexpr (Format::kHasMin)
        m[b][g] = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(halfs[1][b])));
    }
  }

  void fill_scales(const typename Format::Block* const row[16], uint32_t g) {
    W scales[16], mins[16], columns[16];
    for (uint32_t r = 0; r < 16; r++) {
      const auto& block = *row[r];
      if constexpr (Format::kSub == 32) {
        __m128i own, min16;
        scales_k4(block.scales, own, min16);
        scales[r] =
            _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_cvtepi16_epi32(own)), _mm256_zextsi128_si256(min16), 1);
      } else {
        __m256i own, min16 = _mm256_setzero_si256();
        Format::scales(block, own, min16);
        scales[r] = _mm512_cvtepi16_epi32(own);
        mins[r] = _mm512_castsi256_si512(min16);
      }
    }
    transpose16(scales, columns);
    for (int s = 0; s < kSubs; s++) scale[s][g] = columns[s];
    if constexpr (Format::kHasMin && Format::kSub == 16) transpose16(mins, columns);
    for (int p = 0; p < kMinPairs; p++) min[p][g] = columns[Format::kSub == 32 ? 8 + p : p];
  }

  void fill_excess(uint32_t g) {
    W sum = _mm512_setzero_si512();
    for (int s = 0; s < kSubs; s++) {
      W sub = _mm512_setzero_si512();
      for (int i = 0; i < 64 / kSubs; i++) sub = dot(sub, w[64 / kSubs * s + i][g], _mm512_set1_epi8(char(128)));
      sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(sub, scale[s][g]));
    }
    excess[g] = sum;
  }
};

PERIGEE_INLINE W broadcast32(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, 4);
  return _mm512_set1_epi32(value);
}

// Dots of elements [4 from, 4 (from + kCount)) added to sum.
template <typename Format, int kT, int kCount>
PERIGEE_INLINE void wide_dots(const WidePanel<Format>& panel, const int8_t* const q[kT], int from,
                              W sum[kT][kWideGroups]) {
  PERIGEE_UNROLL
  for (int i = from; i < from + kCount; i++) {
    const W w0 = panel.w[i][0], w1 = panel.w[i][1];
    for (int t = 0; t < kT; t++) {
      const W x = broadcast32(q[t] + 4 * i);
      sum[t][0] = panel.dot(sum[t][0], w0, x);
      sum[t][1] = panel.dot(sum[t][1], w1, x);
    }
  }
}

// Superblock b: one term per row and activation row. `lanes` is [kT][4][kWideGroups].
template <typename Format, int kT>
void wide_tile(const WidePanel<Format>& panel, const Q8_KRow* x, uint32_t b, uint32_t, F* lanes) {
  using Panel = WidePanel<Format>;
  const int8_t* q[kT];
  alignas(64) int8_t shifted[kT][256];
  W isum[kT][kWideGroups];
  for (int t = 0; t < kT; t++) {
    q[t] = x[t].q + 256 * b;
    if constexpr (kShiftedX<Format>) {
      for (int c = 0; c < 256; c += 64) _mm512_store_si512(shifted[t] + c, flip_signs(_mm512_loadu_si512(q[t] + c)));
      q[t] = shifted[t];
    }
    for (uint32_t g = 0; g < kWideGroups; g++) isum[t][g] = _mm512_setzero_si512();
  }
  for (int s = 0; s < Panel::kSubs; s++) {
    W sub[kT][kWideGroups];
    for (int t = 0; t < kT; t++)
      for (uint32_t g = 0; g < kWideGroups; g++) sub[t][g] = _mm512_setzero_si512();
    wide_dots<Format, kT, 64 / Panel::kSubs>(panel, q, 64 / Panel::kSubs * s, sub);
    for (int t = 0; t < kT; t++)
      for (uint32_t g = 0; g < kWideGroups; g++)
        isum[t][g] = _mm512_add_epi32(isum[t][g], _mm512_mullo_epi32(sub[t][g], panel.scale[s][g]));
  }
  for (int t = 0; t < kT; t++) {
    const F xd = _mm512_set1_ps(x[t].d[b]);
    for (uint32_t g = 0; g < kWideGroups; g++) {
      if constexpr (kShiftedX<Format>) isum[t][g] = _mm512_sub_epi32(isum[t][g], panel.excess[g]);
      F value = _mm512_mul_ps(panel.d[0][g], _mm512_cvtepi32_ps(isum[t][g]));
      if constexpr (Format::kHasMin) {
        const int16_t* sums = Format::kSub == 32 ? x[t].sum32 + 8 * b : x[t].sum16 + 16 * b;
        W msum = _mm512_setzero_si512();
        for (int p = 0; p < Panel::kMinPairs; p++)
          msum = _mm512_dpwssd_epi32(msum, panel.min[p][g], broadcast32(sums + 2 * p));
        value = _mm512_sub_ps(value, _mm512_mul_ps(panel.m[0][g], _mm512_cvtepi32_ps(msum)));
      }
      F& lane = lanes[(4 * t + b % 4) * kWideGroups + g];
      lane = _mm512_add_ps(lane, _mm512_mul_ps(xd, value));
    }
  }
}

// Blocks first .. first + count of 32.
template <typename Format, int kT>
void wide_tile(const WidePanel<Format>& panel, const Q8_0Row* x, uint32_t first, uint32_t count, F* lanes) {
  const int8_t* q[kT];
  for (int t = 0; t < kT; t++) q[t] = x[t].q + 32 * first;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t b = first + i;
    W isum[kT][kWideGroups];
    for (int t = 0; t < kT; t++)
      for (uint32_t g = 0; g < kWideGroups; g++) isum[t][g] = _mm512_set1_epi32(-Format::kOffset * x[t].sum[b]);
    wide_dots<Format, kT, 8>(panel, q, int(8 * i), isum);
    for (int t = 0; t < kT; t++) {
      const F xd = _mm512_set1_ps(x[t].d[b]), xsum = _mm512_set1_ps(float(x[t].sum[b]));
      for (uint32_t g = 0; g < kWideGroups; g++) {
        const F d = panel.d[i][g], value = _mm512_cvtepi32_ps(isum[t][g]);
        F& lane = lanes[(4 * t + b % 4) * kWideGroups + g];
        F term;
        if constexpr (Format::kHasMin)
          term = _mm512_mul_ps(xd, _mm512_add_ps(_mm512_mul_ps(d, value), _mm512_mul_ps(panel.m[i][g], xsum)));
        else term = _mm512_mul_ps(_mm512_mul_ps(d, xd), value);
        lane = _mm512_add_ps(lane, term);
      }
    }
  }
}

template <typename Format>
using WideRow = std::conditional_t<Format::kSuper, Q8_KRow, Q8_0Row>;

// Every activation row of the pass against one panel, in tiles of nearly equal width.
template <typename Format>
PERIGEE_INLINE void wide_tiles(const WidePanel<Format>& panel, const WideRow<Format>* x, uint32_t n, uint32_t first,
                               uint32_t count, F* lanes) {
  using Tile = void (*)(const WidePanel<Format>&, const WideRow<Format>*, uint32_t, uint32_t, F*);
  static constexpr Tile kTiles[] = {wide_tile<Format, 1>, wide_tile<Format, 2>, wide_tile<Format, 3>,
                                    wide_tile<Format, 4>, wide_tile<Format, 5>, wide_tile<Format, 6>};
  for (uint32_t t = 0, tiles = (n + kWideTile - 1) / kWideTile; tiles > 0; tiles--) {
    const uint32_t width = (n - t + tiles - 1) / tiles;
    kTiles[width - 1](panel, x + t, first, count, lanes + size_t(t) * 4 * kWideGroups);
    t += width;
  }
}

// Up to kWideTokens activation rows, from number `start`.
template <typename Format>
PERIGEE_NOINLINE void wide_pass(const MatmulArgs& a, uint32_t start, uint32_t n) {
  constexpr uint32_t kElements = Format::kSuper ? 256 : 32;
  const uint32_t blocks = a.cols / kElements, step = 256 / kElements;
  WideRow<Format> x[kWideTokens];
  for (uint32_t t = 0; t < n; t++) {
    if constexpr (Format::kSuper) x[t] = q8_k_row(activation(a, start + t), a.cols);
    else x[t] = q8_0_row(activation(a, start + t), a.cols);
  }
  const auto* w = reinterpret_cast<const typename Format::Block*>(a.w);
  F lanes[kWideTokens * 4 * kWideGroups];
  WidePanel<Format> panel;
  for (uint32_t r = 0; r < a.rows; r += kWideRows) {
    const uint32_t rows = a.rows - r < kWideRows ? a.rows - r : kWideRows;
    for (uint32_t i = 0; i < n * 4 * kWideGroups; i++) lanes[i] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < blocks; b += step) {
      const uint32_t count = blocks - b < step ? blocks - b : step;
      for (uint32_t g = 0; g < kWideGroups; g++) panel.fill(w + size_t(r) * blocks + b, blocks, rows, count, g);
      wide_tiles<Format>(panel, x, n, b, count, lanes);
    }
    for (uint32_t t = 0; t < n; t++)
      for (uint32_t g = 0; g < kWideGroups && 16 * g < rows; g++) {
        const F* l = lanes + size_t(t) * 4 * kWideGroups + g;
        const F sum =
            _mm512_add_ps(_mm512_add_ps(l[0], l[2 * kWideGroups]), _mm512_add_ps(l[kWideGroups], l[3 * kWideGroups]));
        const __mmask16 own = rows - 16 * g < 16 ? __mmask16((1u << (rows - 16 * g)) - 1) : __mmask16(0xffff);
        _mm512_mask_storeu_ps(a.y + size_t(start + t) * a.y_stride + r + 16 * g, own, sum);
      }
  }
}

template <typename Format>
void wide_panels(const MatmulArgs& a) {
  for (uint32_t start = 0; start < a.n; start += kWideTokens)
    wide_pass<Format>(a, start, a.n - start < kWideTokens ? a.n - start : kWideTokens);
}
