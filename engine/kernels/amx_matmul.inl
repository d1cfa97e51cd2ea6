// Prefill by tiles. 32 weight rows, a strip, are decoded 256 columns at a time into two panels of tiles; up to 64 activation
// rows, a pass, are packed into tiles as well and meet both panels before the next columns follow. The sums go through
// memory to vectors, rows along them, for rule 2's float terms.
//
// Per 16 activation rows there are 4 tiles of sums (two panels x two planes of a superblock, or two panels x two blocks of
// 32): tile products take 16 cycles and answer after 52. The vector work of a step is issued behind the products of the
// next, so that both units are busy.
//
// Tile registers: 0-3 sums, 4 and 7 activations, 5 and 6 weights.

constexpr uint32_t kPanels = 2, kStripRows = 16 * kPanels;
constexpr uint32_t kPassTokens = 64;  // with it everything here takes 80 KiB of stack

template <typename Format>
constexpr bool kSuper = sizeof(typename Format::Block) > 64;

template <typename Format>
using Row = std::conditional_t<kSuper<Format>, Q8_KRow, Q8_0Row>;

template <typename Format>
PERIGEE_INLINE Row<Format> row_at(const uint8_t* x, uint32_t cols) {
  if constexpr (kSuper<Format>) return q8_k_row(x, cols);
  else return q8_0_row(x, cols);
}

using TileSums = int32_t[4][16][16];  // [tile of sums][activation row][weight row]

struct alignas(64) TileScratch {
  int8_t x[kPassTokens / 16][4][16][64];  // [tile][64 elements][activation row][64]
  TileSums sums[2];                       // of this step and the one before
  __m512 lanes[4][kPassTokens][kPanels];  // rule 2's lanes
};

// Elements from .. from + count (a multiple of 32, at most 256) of an activation row to row m of a tile's.
PERIGEE_INLINE void pack_row(const int8_t* x, uint32_t from, uint32_t count, uint32_t m, int8_t tile[4][16][64]) {
  uint32_t c = 0;
  for (; c + 64 <= count; c += 64) _mm512_store_si512(tile[c / 64][m], _mm512_loadu_si512(x + from + c));
  if (c < count) __builtin_memcpy(tile[c / 64][m], x + from + c, 32);
}

PERIGEE_INLINE V16 splat_load(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// --- superblocks --------------------------------------------------------------------------------------------------------

// One tile of activation rows: sums[2 * panel + plane].
template <typename Format>
PERIGEE_INLINE void superblock_sums(const SuperPanel panels[kPanels], const int8_t x[4][16][64], TileSums& sums) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int k = 0; k < 4; k++) {
    tile_load<4>(x[k], 64);
    tile_load<5>(panels[0].w[0][k], 64);
    tile_dot<false, 0, 4, 5>();
    if constexpr (Format::kPlanes == 2) {
      tile_load<6>(panels[0].w[1][k], 64);
      tile_dot<Format::kHighSigned, 1, 4, 6>();
    }
    tile_load<5>(panels[1].w[0][k], 64);
    tile_dot<false, 2, 4, 5>();
    if constexpr (Format::kPlanes == 2) {
      tile_load<6>(panels[1].w[1][k], 64);
      tile_dot<Format::kHighSigned, 3, 4, 6>();
    }
  }
  tile_store<0>(sums[0], 64);
  tile_store<1>(sums[1], 64);
  tile_store<2>(sums[2], 64);
  tile_store<3>(sums[3], 64);
}

// What the panels hold is copied first: the compiler does not know that storing lanes leaves it as it is, and loads are scarce.
template <typename Format>
PERIGEE_INLINE void superblock_terms(const SuperPanel panels[kPanels], const Q8_KRow* x, uint32_t count, uint32_t b,
                                     const TileSums& sums, __m512 (*lanes)[kPanels]) {
  const __m512 d[kPanels] = {panels[0].d, panels[1].d};
  __m512 dmin[kPanels];
  V16 min[kPanels][8];
  if constexpr (Format::kMins > 0) {
    PERIGEE_UNROLL
    for (uint32_t p = 0; p < kPanels; p++) {
      dmin[p] = panels[p].dmin;
      PERIGEE_UNROLL
      for (int i = 0; i < Format::kMins / 2; i++) min[p][i] = panels[p].min[i];
    }
  }
  for (uint32_t m = 0; m < count; m++) {
    const __m512 xd = _mm512_set1_ps(x[m].d[b]);
    V16 pair[8];  // sums of the activations of two neighbouring sub-blocks
    if constexpr (Format::kMins > 0) {
      const int16_t* subs = Format::kMins == 8 ? x[m].sum32 + 8 * b : x[m].sum16 + 16 * b;
      PERIGEE_UNROLL
      for (int i = 0; i < Format::kMins / 2; i++) pair[i] = splat_load(subs + 2 * i);
    }
    PERIGEE_UNROLL
    for (uint32_t p = 0; p < kPanels; p++) {
      V16 isum = _mm512_load_si512(sums[2 * p][m]);
      if constexpr (Format::kPlanes == 2) {
        const V16 high = _mm512_load_si512(sums[2 * p + 1][m]);
        isum = _mm512_add_epi32(isum, _mm512_slli_epi32(high, Format::kShift));
      }
      __m512 value = _mm512_mul_ps(d[p], _mm512_cvtepi32_ps(isum));
      if constexpr (Format::kMins > 0) {
        V16 msum = _mm512_setzero_si512();
        PERIGEE_UNROLL
        for (int i = 0; i < Format::kMins / 2; i++) msum = _mm512_dpwssd_epi32(msum, min[p][i], pair[i]);
        value = _mm512_sub_ps(value, _mm512_mul_ps(dmin[p], _mm512_cvtepi32_ps(msum)));
      }
      lanes[m][p] = _mm512_add_ps(lanes[m][p], _mm512_mul_ps(xd, value));
    }
  }
}

// --- blocks of 32 -------------------------------------------------------------------------------------------------------

// Blocks i and i + 1 of the panels: sums[2 * panel + block]. A last odd block's neighbour is computed and not used.
PERIGEE_INLINE void block_sums(const BlockPanel panels[kPanels], const int8_t x[4][16][64], uint32_t i,
                               TileSums& sums) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  tile_load<4>(x[i / 2], 64);
  tile_load<7>(&x[i / 2][0][32], 64);
  tile_load<5>(panels[0].w[i], 64);
  tile_dot<true, 0, 4, 5>();
  tile_load<6>(panels[0].w[i + 1], 64);
  tile_dot<true, 1, 7, 6>();
  tile_load<5>(panels[1].w[i], 64);
  tile_dot<true, 2, 4, 5>();
  tile_load<6>(panels[1].w[i + 1], 64);
  tile_dot<true, 3, 7, 6>();
  tile_store<0>(sums[0], 64);
  tile_store<1>(sums[1], 64);
  tile_store<2>(sums[2], 64);
  tile_store<3>(sums[3], 64);
}

// Block i of the panels is block b of the rows.
template <typename Format>
PERIGEE_INLINE void block_terms(const BlockPanel panels[kPanels], const Q8_0Row* x, uint32_t count, uint32_t i,
                                uint32_t b, const TileSums& sums, __m512 (*lanes)[kPanels]) {
  const __m512 d[kPanels] = {panels[0].d[i], panels[1].d[i]}, min[kPanels] = {panels[0].m[i], panels[1].m[i]};
  for (uint32_t m = 0; m < count; m++) {
    const __m512 xd = _mm512_set1_ps(x[m].d[b]);
    PERIGEE_UNROLL
    for (uint32_t p = 0; p < kPanels; p++) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums[2 * p + i % 2][m]));
      __m512 term;
      if constexpr (Format::kHasMin) {
        const __m512 xsum = _mm512_set1_ps(float(x[m].sum[b]));
        term = _mm512_mul_ps(xd, _mm512_add_ps(_mm512_mul_ps(d[p], sum), _mm512_mul_ps(min[p], xsum)));
      } else {
        term = _mm512_mul_ps(_mm512_mul_ps(d[p], xd), sum);
      }
      lanes[m][p] = _mm512_add_ps(lanes[m][p], term);
    }
  }
}

// --- the loops ----------------------------------------------------------------------------------------------------------

// Up to 64 activation rows in tiles of equal height: a product of low tiles takes less time.
struct Pass {
  uint32_t start, n, tile_rows, tiles;

  Pass(uint32_t from, uint32_t rows) : start(from), n(rows), tiles((rows + 15) / 16) {
    tile_rows = (n + tiles - 1) / tiles;
    tiles = (n + tile_rows - 1) / tile_rows;
  }

  uint32_t first(uint32_t tile) const { return tile * tile_rows; }
  uint32_t count(uint32_t tile) const { return n - first(tile) < tile_rows ? n - first(tile) : tile_rows; }

  // k: bytes of an activation row that one product takes, 64 or 32.
  TileShapes shapes(uint32_t k) const {
    TileShapes shapes;
    for (int sums = 0; sums < 4; sums++) shapes.set(sums, tile_rows, 64);
    shapes.set(4, tile_rows, k);
    shapes.set(7, tile_rows, k);
    shapes.set(5, k / 4, 64);
    shapes.set(6, k / 4, 64);
    return shapes;
  }
};

// (l0 + l2) + (l1 + l3) to the result; `rows` of the strip are the matrix's.
PERIGEE_INLINE void store_strip(const TileScratch& scratch, uint32_t n, uint32_t rows, float* y, size_t y_stride) {
  for (uint32_t t = 0; t < n; t++)
    for (uint32_t p = 0; p < kPanels && 16 * p < rows; p++) {
      const auto lane = [&](int l) { return scratch.lanes[l][t][p]; };
      const __m512 sum = _mm512_add_ps(_mm512_add_ps(lane(0), lane(2)), _mm512_add_ps(lane(1), lane(3)));
      const uint32_t width = rows - 16 * p < 16 ? rows - 16 * p : 16;
      _mm512_mask_storeu_ps(y + t * y_stride + 16 * p, __mmask16((1u << width) - 1), sum);
    }
}

// Asks for the 256 columns after the next, at the end of a strip for the following strip's first ones. An address past the
// matrix does no harm.
template <typename Format>
PERIGEE_INLINE void prefetch(const RowStarts& rows, size_t at, size_t row_bytes) {
  constexpr size_t kBytes = sizeof(typename Format::Block) * (kSuper<Format> ? 1 : 8);
  at += 2 * kBytes;
  if (at >= row_bytes) at += kStripRows * row_bytes - row_bytes;
  for (int r = 0; r < 16; r++)
    for (size_t line = 0; line < kBytes; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(rows.row[r] + at + line), _MM_HINT_T1);
}

// One strip against one pass.
template <typename Format>
struct Strip {
  using Block = typename Format::Block;
  static constexpr uint32_t kElements = kSuper<Format> ? 256 : 32, kStep = 256 / kElements;

  const MatmulArgs& a;
  RowStarts starts[kPanels];
  Row<Format> x[kPassTokens];
  TileScratch scratch;
  std::conditional_t<kSuper<Format>, SuperPanel, BlockPanel> panels[kPanels];

  // Rows and blocks that pad tiles are multiplied too: what they hold is never used, but it is something.
  explicit Strip(const MatmulArgs& args) : a(args) {
    __builtin_memset(scratch.x, 0, sizeof(scratch.x));
    __builtin_memset(panels, 0, sizeof(panels));
  }

  // Blocks b .. b + count of the rows, decoded.
  PERIGEE_INLINE void decode(uint32_t b, uint32_t count, uint32_t used, size_t row_bytes, bool first_pass) {
    const size_t at = size_t(b) * sizeof(Block);
    for (uint32_t p = 0; p < used; p++) {
      if (first_pass) prefetch<Format>(starts[p], at, row_bytes);
      if constexpr (kSuper<Format>) Format::decode(starts[p], at, panels[p]);
      else decode_blocks<Format>(starts[p], at, count, panels[p]);
    }
  }

  // Step s of a pass: a tile's superblock, or two blocks of it.
  PERIGEE_INLINE void sums(uint32_t s, uint32_t pairs) {
    if constexpr (kSuper<Format>) superblock_sums<Format>(panels, scratch.x[s], scratch.sums[s % 2]);
    else block_sums(panels, scratch.x[s / pairs], 2 * (s % pairs), scratch.sums[s % 2]);
  }

  PERIGEE_INLINE void terms(const Pass& pass, uint32_t s, uint32_t pairs, uint32_t b, uint32_t count) {
    const uint32_t tile = s / pairs, first = pass.first(tile), height = pass.count(tile);
    const auto lanes = [&](uint32_t block) { return &scratch.lanes[block % 4][first]; };
    if constexpr (kSuper<Format>) {
      superblock_terms<Format>(panels, x + first, height, b, scratch.sums[s % 2], lanes(b));
    } else {
      for (uint32_t i = 2 * (s % pairs); i < count && i < 2 * (s % pairs) + 2; i++)
        block_terms<Format>(panels, x + first, height, i, b + i, scratch.sums[s % 2], lanes(b + i));
    }
  }

  PERIGEE_NOINLINE void run(uint32_t r, const Pass& pass) {
    const uint32_t blocks = a.cols / kElements, rows = a.rows - r < kStripRows ? a.rows - r : kStripRows;
    const uint32_t used = rows > 16 ? 2 : 1;
    const size_t row_bytes = size_t(blocks) * sizeof(Block);
    for (uint32_t p = 0; p < used; p++) starts[p].set(a.w + (r + 16 * p) * row_bytes, row_bytes, rows - 16 * p);
    for (uint32_t t = 0; t < pass.n; t++) {
      const uint32_t i = pass.start + t;
      x[t] = row_at<Format>(a.x + a.x_stride * (a.x_rows ? uint32_t(a.x_rows[i]) : i), a.cols);
    }
    for (auto& lane : scratch.lanes) __builtin_memset(lane, 0, pass.n * sizeof(lane[0]));
    for (uint32_t b = 0; b < blocks; b += kStep) {
      const uint32_t count = blocks - b < kStep ? blocks - b : kStep;
      decode(b, count, used, row_bytes, pass.start == 0);
      for (uint32_t tile = 0; tile < pass.tiles; tile++)
        for (uint32_t m = 0; m < pass.count(tile); m++)
          pack_row(x[pass.first(tile) + m].q, b * kElements, count * kElements, m, scratch.x[tile]);
      const uint32_t pairs = kSuper<Format> ? 1 : (count + 1) / 2, steps = pass.tiles * pairs;
      for (uint32_t s = 0; s <= steps; s++) {
        if (s < steps) sums(s, pairs);
        if (s > 0) terms(pass, s - 1, pairs, b, count);
      }
    }
    store_strip(scratch, pass.n, rows, a.y + pass.start * a.y_stride + r, a.y_stride);
  }
};

// Every pass over a strip before the next strip, whose weights come from memory. Passes are of about equal size.
template <typename Format>
void tile_matmul(const MatmulArgs& a) {
  Strip<Format> strip(a);
  const uint32_t passes = (a.n + kPassTokens - 1) / kPassTokens;
  for (uint32_t r = 0; r < a.rows; r += kStripRows)
    for (uint32_t i = 0, start = 0; i < passes; i++) {
      const Pass pass(start, (a.n - start) / (passes - i));
      tile_configure(pass.shapes(kSuper<Format> ? 64 : 32));
      strip.run(r, pass);
      start += pass.n;
    }
  tile_release();
}
