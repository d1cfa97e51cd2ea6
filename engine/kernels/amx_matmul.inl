// Prefill by tiles. 32 weight rows, a strip, are decoded 256 columns at a time into two panels of tiles; up to 128
// activation rows, a pass, meet both panels before the next columns follow. The sums go through memory to vectors, rows
// along them, for rule 2's float terms.
//
// A tile of activations is loaded from 16 of the rows themselves; only rows picked by x_rows are copied together first.
// Each meets 4 tiles of sums (two panels x two planes): tile products take 16 cycles and answer after 52. Behind them the
// terms of the tile before are issued, so that both units are busy, and the sums are stored last: 4 KiB of stores share
// their low 12 address bits with any load, and a load waits for an earlier store that it seems to meet.
//
// Tile registers: 0-3 sums, 4 activations, 5 and 6 weights.

constexpr uint32_t kPanels = 2, kStripRows = 16 * kPanels;
// As many as in wide_panel.inl; everything here then takes 123 KiB of stack. On a Zen 5 core, tile products left out, 128 are
// 1.1 to 1.2 times as fast as 64: half the decoding.
constexpr uint32_t kPassTokens = 128;

using TileSums = int32_t[4][16][16];  // [2 * panel + plane][activation row][weight row]

PERIGEE_INLINE V16 splat_load(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// Up to kPassTokens activation rows in tiles of equal height: a product of low tiles takes less time. The last tile ends
// with the last row, so that it may begin with rows which the tile before it has served.
struct Pass {
  uint32_t start, n, tile_rows, tiles;

  Pass(uint32_t from, uint32_t rows) : start(from), n(rows), tiles((rows + 15) / 16) {
    tile_rows = (n + tiles - 1) / tiles;
    tiles = (n + tile_rows - 1) / tile_rows;
  }

  uint32_t first(uint32_t tile) const { return tile + 1 < tiles ? tile * tile_rows : n - tile_rows; }
  uint32_t served(uint32_t tile) const { return tile * tile_rows - first(tile); }

  TileShapes shapes() const {
    TileShapes shapes;
    for (int tile = 0; tile <= 4; tile++) shapes.set(tile, tile_rows, 64);
    shapes.set(5, 16, 64);
    shapes.set(6, 16, 64);
    return shapes;
  }
};

// The products of one tile of activation rows, x_stride bytes apart, into the registers of sums.
template <typename Format>
PERIGEE_INLINE void tile_products(const SuperPanel panels[kPanels], const int8_t* x, size_t x_stride) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int k = 0; k < 4; k++) {
    tile_load<4>(x + 64 * k, x_stride);
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
}

template <typename Format>
PERIGEE_INLINE void store_sums(TileSums& sums) {
  tile_store<0>(sums[0], 64);
  tile_store<2>(sums[2], 64);
  if constexpr (Format::kPlanes == 2) {
    tile_store<1>(sums[1], 64);
    tile_store<3>(sums[3], 64);
  }
}

// Superblock b's terms of a tile's activation rows first .. end - 1. What the panels hold is copied first: the compiler
// does not know that storing lanes leaves it as it is, and loads are scarce.
template <typename Format>
PERIGEE_INLINE void add_terms(const SuperPanel panels[kPanels], const Q8_KRow* x, uint32_t first, uint32_t end,
                              uint32_t b, const TileSums& sums, __m512 (*lanes)[kPanels]) {
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
  const __mmask16 begun = b < 4 ? 0 : 0xffff;  // a lane's first term is added to +0.0
  for (uint32_t m = first; m < end; m++) {
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
      lanes[m][p] = _mm512_add_ps(_mm512_maskz_load_ps(begun, &lanes[m][p]), _mm512_mul_ps(xd, value));
    }
  }
}

// Asks for the superblock after the next, at the end of a strip for the following strip's first ones. An address past the
// matrix does no harm.
template <typename Block>
PERIGEE_INLINE void prefetch(const RowStarts& rows, size_t at, size_t row_bytes) {
  at += 2 * sizeof(Block);
  if (at >= row_bytes) at += (kStripRows - 1) * row_bytes;
  for (int r = 0; r < 16; r++)
    for (size_t line = 0; line < sizeof(Block); line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(rows.row[r] + at + line), _MM_HINT_T1);
}

// One strip against one pass.
template <typename Format>
struct Strip {
  using Block = typename Format::Block;

  const MatmulArgs& a;
  RowStarts starts[kPanels];
  Q8_KRow x[kPassTokens];
  alignas(64) TileSums sums;
  alignas(64) int8_t picked[kPassTokens][256];
  __m512 lanes[4][kPassTokens][kPanels];  // rule 2's lanes
  SuperPanel panels[kPanels];

  explicit Strip(const MatmulArgs& args) : a(args) {}

  PERIGEE_NOINLINE void run(uint32_t r, const Pass& pass) {
    const uint32_t blocks = a.cols / 256;
    const size_t row_bytes = blocks * sizeof(Block);
    for (uint32_t p = 0; p < kPanels; p++) starts[p].set(a.w, row_bytes, r + 16 * p, a.rows);
    for (uint32_t t = 0; t < pass.n; t++) {
      const uint32_t i = pass.start + t;
      x[t] = q8_k_row(a.x + a.x_stride * (a.x_rows ? uint32_t(a.x_rows[i]) : i), a.cols);
    }
    for (uint32_t l = blocks; l < 4; l++) __builtin_memset(lanes[l], 0, pass.n * sizeof(lanes[l][0]));
    for (uint32_t b = 0; b < blocks; b++) {
      for (const RowStarts& rows : starts) {
        if (pass.start == 0) prefetch<Block>(rows, b * sizeof(Block), row_bytes);
        Format::decode(rows, b * sizeof(Block), panels[&rows - starts]);
      }
      multiply(pass, b);
    }
    store(r, pass);
  }

  // Superblock b of the activation rows against the panels.
  PERIGEE_INLINE void multiply(const Pass& pass, uint32_t b) {
    const int8_t* rows = x[0].q + 256 * b;
    size_t stride = a.x_stride;
    if (a.x_rows) {
      for (uint32_t t = 0; t < pass.n; t++) __builtin_memcpy(picked[t], x[t].q + 256 * b, 256);
      rows = picked[0];
      stride = 256;
    }
    for (uint32_t tile = 0; tile <= pass.tiles; tile++) {
      if (tile < pass.tiles) tile_products<Format>(panels, rows + pass.first(tile) * stride, stride);
      if (tile > 0) {
        const uint32_t first = pass.first(tile - 1);
        add_terms<Format>(panels, x + first, pass.served(tile - 1), pass.tile_rows, b, sums, &lanes[b % 4][first]);
      }
      if (tile < pass.tiles) store_sums<Format>(sums);
    }
  }

  // (l0 + l2) + (l1 + l3) to the result's columns r .. r + 31, as far as it has them.
  PERIGEE_INLINE void store(uint32_t r, const Pass& pass) {
    for (uint32_t p = 0; p < kPanels && r + 16 * p < a.rows; p++) {
      const uint32_t width = a.rows - r - 16 * p;
      const __mmask16 used = width < 16 ? __mmask16((1u << width) - 1) : __mmask16(0xffff);
      for (uint32_t t = 0; t < pass.n; t++) {
        const auto lane = [&](int l) { return lanes[l][t][p]; };
        const __m512 sum = _mm512_add_ps(_mm512_add_ps(lane(0), lane(2)), _mm512_add_ps(lane(1), lane(3)));
        _mm512_mask_storeu_ps(a.y + (pass.start + t) * a.y_stride + r + 16 * p, used, sum);
      }
    }
  }
};

// Every pass over a strip before the next strip, whose weights come from memory. Passes are of about equal size; tiles are
// configured when their height changes, which clears them and takes as long as a dozen products.
template <typename Format>
void tile_matmul(const MatmulArgs& a) {
  Strip<Format> strip(a);
  const uint32_t passes = (a.n + kPassTokens - 1) / kPassTokens;
  uint32_t configured = 0;
  for (uint32_t r = 0; r < a.rows; r += kStripRows)
    for (uint32_t i = 0, start = 0; i < passes; i++) {
      const Pass pass(start, (a.n - start) / (passes - i));
      if (pass.tile_rows != configured) tile_configure(pass.shapes());
      configured = pass.tile_rows;
      strip.run(r, pass);
      start += pass.n;
    }
  tile_release();
}
