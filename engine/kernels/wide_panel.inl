// Prefill: quantized weights against many activation rows. kWideRows weight rows are decoded 256 elements at a time into a
// panel that stays in L1, with rows along the vectors, four elements of one row in each 32-bit lane, and every activation
// row meets the panel before the next is decoded. The table's own file multiplies: wide_tile, finish_panel.

constexpr uint32_t kWideRows = kLaneRows * kWideGroups;
constexpr uint32_t kWideTokens = 128;  // activation rows per pass: their lane sums take 32 or 64 KiB of stack, in L2

template <typename Format>
struct WidePanel;

template <typename Format>
using WideRow = std::conditional_t<Format::kSuper, Q8_KRow, Q8_0Row>;

// kT activation rows against blocks first .. first + count; `lanes` is [kT][4][kWideGroups].
template <typename Format, int kT>
void wide_tile(const WidePanel<Format>& panel, const WideRow<Format>* x, uint32_t first, uint32_t count, F* lanes);

// What a table computes from a group's codes and scales.
template <typename Format>
void finish_panel(WidePanel<Format>& panel, uint32_t g);

template <typename Format>
struct WidePanel {
  static constexpr int kSubs = Format::kSubs;
  static constexpr int kMinPairs = Format::kSuper && Format::kHasMin ? kSubs / 2 : 0;
  static constexpr int kBlocks = Format::kSuper ? 1 : 8;

  W w[64][kWideGroups];  // elements 4 i .. 4 i + 3
  W scale[kSubs][kWideGroups];
  W min[kMinPairs + 1][kWideGroups];  // 16-bit mins of two neighbouring sub-blocks
  W excess[kWideGroups];              // what activations 128 above their meaning add to a row's sum
  F d[kBlocks][kWideGroups], m[kBlocks][kWideGroups];

  // Group g of the rows at `blocks`, `stride` blocks apart, the last of `rows` standing in for those beyond; `count` blocks
  // of each (superblocks: 1). As many blocks at `ahead` are fetched.
  void fill(const typename Format::Block* blocks, size_t stride, uint32_t rows, uint32_t count, uint32_t g,
            const typename Format::Block* ahead) {
    LaneRows from;
    from.ahead = reinterpret_cast<const char*>(ahead);
    from.ahead_end = reinterpret_cast<const char*>(ahead + kLaneRows * count);
    for (uint32_t r = 0; r < kLaneRows; r++) {
      const uint32_t own = kLaneRows * g + r < rows ? kLaneRows * g + r : rows - 1;
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
    finish_panel(*this, g);
  }

  // d of block b, and the dmin or m that follows it in memory.
  PERIGEE_INLINE void fill_d(const LaneRows& from, uint32_t b, uint32_t g) {
    using Block = typename Format::Block;
    constexpr size_t kAt = offsetof(Block, d), kPiece = kAt + 16 <= sizeof(Block) ? kAt : sizeof(Block) - 16;
    W v[4];
    from.columns(b * sizeof(Block) + kPiece, v);
    const W heads = shifted<-8 * int((kAt - kPiece) % 4)>(v[(kAt - kPiece) / 4]);
    d[b][g] = low_halfs(heads);
    if constexpr (Format::kHasMin) m[b][g] = low_halfs(shifted<-16>(heads));
  }
};

PERIGEE_INLINE int32_t load_i32(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, 4);
  return value;
}

template <typename Format, int kWidest = kWideTile>
PERIGEE_INLINE void tile_of(uint32_t width, const WidePanel<Format>& panel, const WideRow<Format>* x, uint32_t first,
                            uint32_t count, F* lanes) {
  if (kWidest == 1 || width == kWidest) wide_tile<Format, kWidest>(panel, x, first, count, lanes);
  else if constexpr (kWidest > 1) tile_of<Format, kWidest - 1>(width, panel, x, first, count, lanes);
}

// Every activation row of the pass against one panel, in tiles of nearly equal width.
template <typename Format>
PERIGEE_INLINE void wide_tiles(const WidePanel<Format>& panel, const WideRow<Format>* x, uint32_t n, uint32_t first,
                               uint32_t count, F* lanes) {
  for (uint32_t t = 0, tiles = (n + kWideTile - 1) / kWideTile; tiles > 0; tiles--) {
    const uint32_t width = (n - t + tiles - 1) / tiles;
    tile_of<Format>(width, panel, x + t, first, count, lanes + size_t(t) * 4 * kWideGroups);
    t += width;
  }
}

// Up to kWideTokens activation rows, from number `start`. Panels read short pieces of kWideRows rows, which no hardware
// prefetcher follows, while as many whole rows are one run of memory: the next run is fetched meanwhile, a piece per panel.
// Beyond the matrix that does nothing, or fetches what often follows.
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
  const size_t strip = size_t(kWideRows) * blocks;  // blocks of kWideRows rows
  for (uint32_t r = 0; r < a.rows; r += kWideRows) {
    const uint32_t rows = a.rows - r < kWideRows ? a.rows - r : kWideRows;
    for (uint32_t i = 0; i < n * 4 * kWideGroups; i++) lanes[i] = floats(0.0f);
    for (uint32_t b = 0; b < blocks; b += step) {
      const uint32_t count = blocks - b < step ? blocks - b : step;
      const auto* ahead = w + size_t(r) * blocks + strip + size_t(kWideRows) * b;
      for (uint32_t g = 0; g < kWideGroups; g++)
        panel.fill(w + size_t(r) * blocks + b, blocks, rows, count, g, ahead + size_t(kLaneRows) * count * g);
      wide_tiles<Format>(panel, x, n, b, count, lanes);
    }
    for (uint32_t t = 0; t < n; t++) {
      const F* l = lanes + size_t(t) * 4 * kWideGroups;
      alignas(64) float y[kWideRows];
      for (uint32_t g = 0; g < kWideGroups; g++)
        store_floats(y + kLaneRows * g,
                     add(add(l[g], l[2 * kWideGroups + g]), add(l[kWideGroups + g], l[3 * kWideGroups + g])));
      __builtin_memcpy(a.y + size_t(start + t) * a.y_stride + r, y, rows * sizeof(float));
    }
  }
}

template <typename Format>
void wide_panels(const MatmulArgs& a) {
  for (uint32_t start = 0; start < a.n; start += kWideTokens)
    wide_pass<Format>(a, start, a.n - start < kWideTokens ? a.n - start : kWideTokens);
}
