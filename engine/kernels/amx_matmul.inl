// Prefill by tiles: 32 weight rows x 256 columns are decoded into two panels of tiles, and up to 64 activation rows, packed
// into tiles as well, meet them before the next are decoded. Per 16 activation rows 4 tiles of sums are in flight, which
// hides the latency of a tile product (52 cycles, one starts every 16): two panels x two planes of a superblock, or two
// panels x two blocks of 32. The sums go through memory to vectors, rows along them, where rule 2's float terms follow.
//
// Tile registers: 0-3 sums, 4 and 7 activations, 5 and 6 weights.

constexpr uint32_t kPanels = 2, kStripRows = 16 * kPanels;
constexpr uint32_t kPassTokens = 64;  // with it the scratch of a pass is 72 KiB

template <typename Format>
constexpr bool kSuper = sizeof(typename Format::Block) > 64;

template <typename Format>
using Row = std::conditional_t<kSuper<Format>, Q8_KRow, Q8_0Row>;

template <typename Format>
PERIGEE_INLINE Row<Format> row_at(const uint8_t* x, uint32_t cols) {
  if constexpr (kSuper<Format>) return q8_k_row(x, cols);
  else return q8_0_row(x, cols);
}

struct alignas(64) TileScratch {
  int8_t x[kPassTokens / 16][4][16][64];  // [tile][64 elements][activation row][64]
  int32_t sums[4][16][16];                // [tile of sums][activation row][weight row]
  __m512 lanes[4][kPassTokens][kPanels];  // rule 2's lanes
};

// Elements from .. from + count (a multiple of 32, at most 256) of activation row t to its tiles of `m` rows.
PERIGEE_INLINE void pack_row(const int8_t* x, uint32_t from, uint32_t count, uint32_t tile, uint32_t m,
                             TileScratch& scratch) {
  uint32_t c = 0;
  for (; c + 64 <= count; c += 64) _mm512_store_si512(scratch.x[tile][c / 64][m], _mm512_loadu_si512(x + from + c));
  if (c < count) __builtin_memcpy(scratch.x[tile][c / 64][m], x + from + c, 32);
}

PERIGEE_INLINE V16 splat_load(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// --- superblocks --------------------------------------------------------------------------------------------------------

// Sums of one tile of activation rows: scratch.sums[2 * panel + plane].
template <typename Format>
PERIGEE_INLINE void superblock_sums(const SuperPanel panels[kPanels], uint32_t tile, TileScratch& scratch) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int k = 0; k < 4; k++) {
    tile_load<4>(scratch.x[tile][k], 64);
    tile_load<5>(panels[0].w[0][k], 64);
    tile_dot<false, 0, 4, 5>();
    tile_load<6>(panels[0].w[1][k], 64);
    tile_dot<Format::kHighSigned, 1, 4, 6>();
    tile_load<5>(panels[1].w[0][k], 64);
    tile_dot<false, 2, 4, 5>();
    tile_load<6>(panels[1].w[1][k], 64);
    tile_dot<Format::kHighSigned, 3, 4, 6>();
  }
  tile_store<0>(scratch.sums[0], 64);
  tile_store<1>(scratch.sums[1], 64);
  tile_store<2>(scratch.sums[2], 64);
  tile_store<3>(scratch.sums[3], 64);
}

template <typename Format>
PERIGEE_INLINE void superblock_terms(const SuperPanel panels[kPanels], const Q8_KRow* x, uint32_t first, uint32_t count,
                                     uint32_t b, TileScratch& scratch) {
  for (uint32_t m = 0; m < count; m++) {
    const Q8_KRow& row = x[first + m];
    const __m512 xd = _mm512_set1_ps(row.d[b]);
    for (uint32_t p = 0; p < kPanels; p++) {
      const V16 low = _mm512_load_si512(scratch.sums[2 * p][m]), high = _mm512_load_si512(scratch.sums[2 * p + 1][m]);
      const V16 isum = _mm512_add_epi32(low, _mm512_slli_epi32(high, Format::kShift));
      __m512 value = _mm512_mul_ps(panels[p].d, _mm512_cvtepi32_ps(isum));
      if constexpr (Format::kHasMin) {
        V16 msum = _mm512_setzero_si512();
        for (uint32_t i = 0; i < 4; i++)
          msum = _mm512_dpwssd_epi32(msum, panels[p].min[i], splat_load(row.sum32 + 8 * b + 2 * i));
        value = _mm512_sub_ps(value, _mm512_mul_ps(panels[p].dmin, _mm512_cvtepi32_ps(msum)));
      }
      __m512& lane = scratch.lanes[b % 4][first + m][p];
      lane = _mm512_add_ps(lane, _mm512_mul_ps(xd, value));
    }
  }
}

// --- blocks of 32 -------------------------------------------------------------------------------------------------------

// Blocks i and i + 1 of the panels: scratch.sums[2 * panel + block]. A last odd block's neighbour is computed and not used.
PERIGEE_INLINE void block_sums(const BlockPanel panels[kPanels], uint32_t tile, uint32_t i, TileScratch& scratch) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  tile_load<4>(scratch.x[tile][i / 2], 64);
  tile_load<7>(&scratch.x[tile][i / 2][0][32], 64);
  tile_load<5>(panels[0].w[i], 64);
  tile_dot<true, 0, 4, 5>();
  tile_load<6>(panels[0].w[i + 1], 64);
  tile_dot<true, 1, 7, 6>();
  tile_load<5>(panels[1].w[i], 64);
  tile_dot<true, 2, 4, 5>();
  tile_load<6>(panels[1].w[i + 1], 64);
  tile_dot<true, 3, 7, 6>();
  tile_store<0>(scratch.sums[0], 64);
  tile_store<1>(scratch.sums[1], 64);
  tile_store<2>(scratch.sums[2], 64);
  tile_store<3>(scratch.sums[3], 64);
}

// Block i of the panels, block b of the rows.
template <typename Format>
PERIGEE_INLINE void block_terms(const BlockPanel panels[kPanels], const Q8_0Row* x, uint32_t first, uint32_t count,
                                uint32_t i, uint32_t b, TileScratch& scratch) {
  for (uint32_t m = 0; m < count; m++) {
    const Q8_0Row& row = x[first + m];
    const __m512 xd = _mm512_set1_ps(row.d[b]);
    for (uint32_t p = 0; p < kPanels; p++) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(scratch.sums[2 * p + i % 2][m]));
      __m512& lane = scratch.lanes[b % 4][first + m][p];
      if constexpr (Format::kHasMin) {
        const __m512 min = _mm512_mul_ps(panels[p].m[i], _mm512_set1_ps(float(row.sum[b])));
        lane = _mm512_add_ps(lane, _mm512_mul_ps(xd, _mm512_add_ps(_mm512_mul_ps(panels[p].d[i], sum), min)));
      } else {
        lane = _mm512_add_ps(lane, _mm512_mul_ps(_mm512_mul_ps(panels[p].d[i], xd), sum));
      }
    }
  }
}

// --- the loops ----------------------------------------------------------------------------------------------------------

// Up to 64 activation rows in tiles of equal height: a product of low tiles takes less time.
struct Pass {
  uint32_t n, tile_rows, tiles;

  explicit Pass(uint32_t rows) : n(rows), tiles((rows + 15) / 16) {
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

// Asks for 256 columns of each row ahead of their use; an address past the matrix does no harm.
template <typename Format>
PERIGEE_INLINE void prefetch(const RowStarts& rows, size_t at) {
  constexpr size_t kBytes = sizeof(typename Format::Block) * (kSuper<Format> ? 1 : 8);
  for (int r = 0; r < 16; r++)
    for (size_t line = 0; line < kBytes; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(rows.row[r] + at + line), _MM_HINT_T1);
}

template <typename Format>
PERIGEE_NOINLINE void tile_pass(const MatmulArgs& a, uint32_t start, uint32_t n) {
  using Block = typename Format::Block;
  constexpr uint32_t kElements = kSuper<Format> ? 256 : 32, kStep = 256 / kElements;
  const uint32_t blocks = a.cols / kElements;
  const size_t stride = size_t(blocks) * sizeof(Block);
  const Pass pass(n);
  Row<Format> x[kPassTokens];
  for (uint32_t t = 0; t < n; t++)
    x[t] = row_at<Format>(a.x + a.x_stride * (a.x_rows ? uint32_t(a.x_rows[start + t]) : start + t), a.cols);
  TileScratch scratch;
  std::conditional_t<kSuper<Format>, SuperPanel, BlockPanel> panels[kPanels];
  // Rows and blocks that pad tiles are multiplied too; what they hold is never used, but it is something.
  __builtin_memset(scratch.x, 0, sizeof(scratch.x));
  __builtin_memset(panels, 0, sizeof(panels));
  tile_configure(pass.shapes(kSuper<Format> ? 64 : 32));
  for (uint32_t r = 0; r < a.rows; r += kStripRows) {
    const uint32_t rows = a.rows - r < kStripRows ? a.rows - r : kStripRows;
    const uint32_t used = rows > 16 ? 2 : 1;
    RowStarts starts[kPanels];
    for (uint32_t p = 0; p < used; p++) starts[p].set(a.w + (r + 16 * p) * stride, stride, rows - 16 * p);
    for (auto& lane : scratch.lanes) __builtin_memset(lane, 0, n * sizeof(lane[0]));
    for (uint32_t b = 0; b < blocks; b += kStep) {
      const uint32_t count = blocks - b < kStep ? blocks - b : kStep;
      for (uint32_t p = 0; p < used; p++) {
        prefetch<Format>(starts[p], (b + 2 * kStep) * sizeof(Block));
        if constexpr (kSuper<Format>) Format::decode(starts[p], b * sizeof(Block), panels[p]);
        else decode_blocks<Format>(starts[p], b * sizeof(Block), count, panels[p]);
      }
      for (uint32_t t = 0; t < n; t++)
        pack_row(x[t].q, b * kElements, count * kElements, t / pass.tile_rows, t % pass.tile_rows, scratch);
      for (uint32_t tile = 0; tile < pass.tiles; tile++) {
        const uint32_t first = pass.first(tile), height = pass.count(tile);
        if constexpr (kSuper<Format>) {
          superblock_sums<Format>(panels, tile, scratch);
          superblock_terms<Format>(panels, x, first, height, b, scratch);
        } else {
          for (uint32_t i = 0; i < count; i += 2) {
            block_sums(panels, tile, i, scratch);
            block_terms<Format>(panels, x, first, height, i, b + i, scratch);
            if (i + 1 < count) block_terms<Format>(panels, x, first, height, i + 1, b + i + 1, scratch);
          }
        }
      }
    }
    store_strip(scratch, n, rows, a.y + start * a.y_stride + r, a.y_stride);
  }
  tile_release();
}

// In passes of about equal size.
template <typename Format>
void tile_matmul(const MatmulArgs& a) {
  const uint32_t passes = (a.n + kPassTokens - 1) / kPassTokens;
  for (uint32_t i = 0, start = 0; i < passes; i++) {
    const uint32_t n = (a.n - start) / (passes - i);
    tile_pass<Format>(a, start, n);
    start += n;
  }
}
