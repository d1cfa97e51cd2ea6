// The loops over panels: rows, then 256 columns, then activation rows in tiles.

template <typename Format>
using Row = std::conditional_t<Format::kSuper, Q8_KRow, Q8_0Row>;

template <typename Format>
PERIGEE_INLINE Row<Format> row_at(const uint8_t* x, uint32_t cols) {
  if constexpr (Format::kSuper) return q8_k_row(x, cols);
  else return q8_0_row(x, cols);
}

// min . (sums of the activation's sub-blocks), for one activation row.
template <int kMins>
PERIGEE_INLINE V min_dots(const PanelScales& panel, const int16_t* sums, uint32_t g) {
  V sum = zero();
  for (int p = 0; p < kMins / 2; p++) sum = add32(sum, dot16(panel.min[p][g], load_splat32(sums + 2 * p)));
  return sum;
}

// Superblock b: one term per row and activation row. `lanes` is [kT][4][kGroups].
template <typename Format, typename Panel, int kT>
PERIGEE_INLINE void superblock_tile(const Panel& panel, const Q8_KRow x[kT], uint32_t b, V* lanes) {
  const int8_t* q[kT];
  for (int t = 0; t < kT; t++) q[t] = x[t].q + 256 * b;
  typename Panel::template Tokens<kT> tokens;
  tokens.take(q, 256);
  V isum[kT][kGroups];
  panel.template dots<kT, 256>(tokens, 0, isum);
  for (int t = 0; t < kT; t++)
    for (uint32_t g = 0; g < kGroups; g++) {
      V msum = zero();
      if constexpr (Panel::kOffsetAsMins) {
        isum[t][g] = sub32(isum[t][g], min_dots<16>(panel, x[t].sum16 + 16 * b, g));
      } else if constexpr (Format::kHasMin) {
        msum = min_dots<Format::kMins>(panel, Format::kMins == 8 ? x[t].sum32 + 8 * b : x[t].sum16 + 16 * b, g);
      }
      V& lane = lanes[(4 * t + b % 4) * kGroups + g];
      lane = add(lane, superblock_terms<Format::kHasMin>(splat_float(x[t].d[b]), panel.d[0][g], panel.m[0][g],
                                                         isum[t][g], msum));
    }
}

// Blocks first .. first + count of 32.
template <typename Format, typename Panel, int kT>
PERIGEE_INLINE void blocks_tile(const Panel& panel, const Q8_0Row x[kT], uint32_t first, uint32_t count, V* lanes) {
  const int8_t* q[kT];
  for (int t = 0; t < kT; t++) q[t] = x[t].q + 32 * first;
  typename Panel::template Tokens<kT> tokens;
  tokens.take(q, 32 * count);
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t b = first + i;
    V isum[kT][kGroups];
    panel.template dots<kT, 32>(tokens, 32 * i, isum);
    for (int t = 0; t < kT; t++)
      for (uint32_t g = 0; g < kGroups; g++) {
        if constexpr (Panel::kUnsigned) isum[t][g] = without_offset<Format>(isum[t][g], splat32(x[t].sum[b]));
        const V xd = splat_float(x[t].d[b]), d = panel.d[i][g], s = to_float(isum[t][g]);
        V& lane = lanes[(4 * t + b % 4) * kGroups + g];
        if constexpr (Format::kHasMin)
          lane = add(lane, mul(xd, add(mul(d, s), mul(panel.m[i][g], to_float(splat32(x[t].sum[b]))))));
        else lane = add(lane, mul(mul(d, xd), s));
      }
  }
}

template <typename Format, typename Panel, int kT>
void panel_tile(const Panel& panel, const Row<Format>* x, uint32_t first, uint32_t count, V* lanes) {
  if constexpr (Format::kSuper) superblock_tile<Format, Panel, kT>(panel, x, first, lanes);
  else blocks_tile<Format, Panel, kT>(panel, x, first, count, lanes);
}

// Every activation row of the pass against one panel.
template <typename Format, typename Panel>
void panel_tiles(const Panel& panel, const Row<Format>* x, uint32_t n, uint32_t first, uint32_t count, V* lanes) {
  constexpr uint32_t kTokenLanes = 4 * kGroups;
  uint32_t t = 0;
  for (; t + 4 <= n; t += 4) panel_tile<Format, Panel, 4>(panel, x + t, first, count, lanes + t * kTokenLanes);
  lanes += t * kTokenLanes;
  if (n - t == 3) panel_tile<Format, Panel, 3>(panel, x + t, first, count, lanes);
  if (n - t == 2) panel_tile<Format, Panel, 2>(panel, x + t, first, count, lanes);
  if (n - t == 1) panel_tile<Format, Panel, 1>(panel, x + t, first, count, lanes);
}

// Up to 64 activation rows, from number `start`.
template <typename Format, typename Panel>
PERIGEE_NOINLINE void panel_pass(const MatmulArgs& a, uint32_t start, uint32_t n) {
  constexpr uint32_t kElements = Format::kSuper ? 256 : 32;
  const uint32_t blocks = a.cols / kElements, step = kPanelCols / kElements;
  Row<Format> x[kPanelTokens];
  for (uint32_t t = 0; t < n; t++) x[t] = row_at<Format>(activation(a, start + t), a.cols);
  const auto* w = reinterpret_cast<const typename Format::Block*>(a.w);
  V lanes[kPanelTokens * 4 * kGroups];
  RowCodes codes[kPanelRows] = {};
  Panel panel;
  for (uint32_t r = 0; r < a.rows; r += kPanelRows) {
    const uint32_t rows = a.rows - r < kPanelRows ? a.rows - r : kPanelRows;
    for (uint32_t i = 0; i < n * 4 * kGroups; i++) lanes[i] = zero();
    for (uint32_t b = 0; b < blocks; b += step) {
      const uint32_t count = blocks - b < step ? blocks - b : step;
      for (uint32_t i = 0; i < rows; i++) Format::fill(w + size_t(r + i) * blocks + b, count, codes[i]);
      panel.fill(codes, count);
      panel_tiles<Format, Panel>(panel, x, n, b, count, lanes);
    }
    for (uint32_t t = 0; t < n; t++) {
      const V* l = lanes + t * 4 * kGroups;
      alignas(16) float y[kPanelRows];
      for (uint32_t g = 0; g < kGroups; g++)
        store(y + 4 * g, add(add(l[g], l[2 * kGroups + g]), add(l[kGroups + g], l[3 * kGroups + g])));
      __builtin_memcpy(a.y + size_t(start + t) * a.y_stride + r, y, rows * sizeof(float));
    }
  }
}

template <typename Format, typename Panel>
void panel_matmul(const MatmulArgs& a) {
  for (uint32_t start = 0; start < a.n; start += kPanelTokens)
    panel_pass<Format, Panel>(a, start, a.n - start < kPanelTokens ? a.n - start : kPanelTokens);
}

// The 8-bit panel where the table has an 8-bit dot that pays and the codes fit it.
template <typename Format>
using FastPanel = std::conditional_t<kFastDot8 && !std::is_same_v<Format, FormatQ8_0>, Panel8<FastFormat<Format>>,
                                     Panel16<FastFormat<Format>>>;

template <typename Format, int kN>
void gemv(const MatmulArgs& a) {
  if constexpr (!FastFormat<Format>::kSuper) gemv_blocks<BlockDots<Format>, kN>(a);
  else if (a.cols <= 512) gemv_short_rows<SuperDots<Format>, kN>(a);
  else gemv_superblocks<SuperDots<Format>, kN>(a);
}

// The fast formats: few activation rows by gemv, more by panels.
template <typename Format>
void matmul_fast(const MatmulArgs& a) {
  switch (a.n) {
    case 0:
      return;
    case 1:
      return gemv<Format, 1>(a);
    case 2:
      return gemv<Format, 2>(a);
    case 3:
      return gemv<Format, 3>(a);
    case 4:
      return gemv<Format, 4>(a);
    default:
      return panel_matmul<FastFormat<Format>, FastPanel<Format>>(a);
  }
}

template <typename Block, bool kHasMin>
void matmul_plain(const MatmulArgs& a) {
  using Format = PlainFormat<Block, kHasMin>;
  panel_matmul<Format, Panel16<Format>>(a);
}
