// Prefill: quantized weights against many activation rows. 32 weight rows are decoded 256 elements at a time into a panel
// of 8 KiB with rows along the vectors, four elements of one row in each 32-bit lane, and every activation row meets the
// panel before the next is decoded. A register tile is 32 rows x up to 6 activation rows: 12 sums of a sub-block, 12 of a
// superblock, and one load for every 1.5 dots, of which this takes two a cycle.

constexpr uint32_t kWideRows = 16 * kWideGroups;
constexpr uint32_t kWideTile = 6;
constexpr uint32_t kWideTokens = 128;  // activation rows per pass: their lane sums take 64 KiB of stack, in L2

// Superblocks with signed meanings keep signed codes and meet activations 128 above theirs; what that adds to a row's
// sum depends on the weights alone (excess). The others keep unsigned codes.
template <typename Format>
constexpr bool kShiftedX = Format::kSuper && (Format::kSigned || Format::kOffset != 0);

template <typename Format>
struct WidePanel {
  static constexpr int kSubs = Format::kSubs;
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
  // of each (superblocks: 1). As many blocks at `ahead` are fetched.
  void fill(const typename Format::Block* blocks, size_t stride, uint32_t rows, uint32_t count, uint32_t g,
            const typename Format::Block* ahead) {
    Rows16 from;
    from.ahead = reinterpret_cast<const char*>(ahead);
    from.ahead_end = reinterpret_cast<const char*>(ahead + 16 * count);
    for (uint32_t r = 0; r < 16; r++) {
      const uint32_t own = 16 * g + r < rows ? 16 * g + r : rows - 1;
      from.row[r] = reinterpret_cast<const uint8_t*>(blocks + own * stride);
    }
    if constexpr (Format::kSuper) {
      fill_codes(Format(), from, Column{&w[0][g]});
      fill_scales(Format(), from, Column{&scale[0][g]}, Column{&min[0][g]});
    } else {
      for (uint32_t b = 0; b < count; b++)
        fill_block(Format(), from, b * sizeof(typename Format::Block), Column{&w[8 * b][g]});
    }
    for (uint32_t b = 0; b < count; b++) fill_d(from, b, g);
    if constexpr (kShiftedX<Format>) fill_excess(g);
  }

  // d of block b, and the dmin or m that follows it in memory.
  PERIGEE_INLINE void fill_d(const Rows16& from, uint32_t b, uint32_t g) {
    using Block = typename Format::Block;
    constexpr size_t kAt = offsetof(Block, d), kPiece = kAt + 16 <= sizeof(Block) ? kAt : sizeof(Block) - 16;
    W v[4];
    from.columns(b * sizeof(Block) + kPiece, v);
    const W heads = shifted<-8 * int((kAt - kPiece) % 4)>(v[(kAt - kPiece) / 4]);
    d[b][g] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(heads));
    if constexpr (Format::kHasMin) m[b][g] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(heads, 16)));
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
        const int16_t* sums = Panel::kSubs == 8 ? x[t].sum32 + 8 * b : x[t].sum16 + 16 * b;
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

// Up to kWideTokens activation rows, from number `start`. Panels read short pieces of 32 rows, which no hardware prefetcher
// follows, while 32 whole rows are one run of memory: the next run is fetched meanwhile, a piece per panel. Beyond the
// matrix that does nothing, or fetches what often follows. Panels read short pieces of 32 rows, which no hardware prefetcher
// follows, while 32 whole rows are one run of memory: it is fetched during the 32 rows before.
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
  const size_t strip = size_t(kWideRows) * blocks;  // blocks of 32 rows
  for (uint32_t r = 0; r < a.rows; r += kWideRows) {
    const uint32_t rows = a.rows - r < kWideRows ? a.rows - r : kWideRows;
    for (uint32_t i = 0; i < n * 4 * kWideGroups; i++) lanes[i] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < blocks; b += step) {
      const uint32_t count = blocks - b < step ? blocks - b : step;
      const auto* ahead = w + size_t(r) * blocks + strip + size_t(kWideRows) * b;
      for (uint32_t g = 0; g < kWideGroups; g++)
        panel.fill(w + size_t(r) * blocks + b, blocks, rows, count, g, ahead + size_t(16) * count * g);
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
