// Float dots in rule 3's 16 lanes: one at a time, and in tiles for many rows against many.

// Sixteen running lanes.
struct Lanes16 {
  F lane[kLaneVectors];

  PERIGEE_INLINE Lanes16() {
    for (F& l : lane) l = floats(0.0f);
  }
  PERIGEE_INLINE void add_product(F w, F x, int g) { lane[g] = add(lane[g], mul(w, x)); }
  PERIGEE_INLINE void add_products(const float* w, const float* x) {
    for (int g = 0; g < kLaneVectors; g++) add_product(load_floats(w + kFloatLanes * g), load_floats(x + kFloatLanes * g), g);
  }
  PERIGEE_INLINE void add_floats(const float* x) {
    for (int g = 0; g < kLaneVectors; g++) lane[g] = add(lane[g], load_floats(x + kFloatLanes * g));
  }
  PERIGEE_INLINE float sum() const { return fold16(lane); }
};

// The last n < 16 floats of a row, zero beyond: they add +0.0 to lanes that get nothing.
struct Tail16 {
  alignas(64) float x[16] = {};

  PERIGEE_INLINE Tail16(const float* from, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) x[i] = from[i];
  }
};

float dot_float(const float* a, const float* b, uint32_t n) {
  Lanes16 lanes;
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16) lanes.add_products(a + i, b + i);
  if (i < n) lanes.add_products(Tail16(a + i, n - i).x, Tail16(b + i, n - i).x);
  return lanes.sum();
}

// A tile of dots, kA rows of a against kB rows of b. The lane vectors are passed one after another over the same floats
// (which are in L1), so that a tile needs kA * kB accumulators and kA + kB loads, not 16 / kFloatLanes times as many.
// sums[g] holds every pair's lane vector g and runs on from call to call; n is a multiple of 16. kFused: products are exact.
template <int kA, int kB, bool kFused = false>
PERIGEE_INLINE void dot_tile(const float* const a[kA], const float* const b[kB], uint32_t n,
                             F sums[kLaneVectors][kA * kB]) {
  for (int g = 0; g < kLaneVectors; g++) {
    F acc[kA * kB];
    PERIGEE_UNROLL
    for (int p = 0; p < kA * kB; p++) acc[p] = sums[g][p];
    for (uint32_t i = kFloatLanes * g; i < n; i += 16) {
      F vb[kB];
      PERIGEE_UNROLL
      for (int j = 0; j < kB; j++) vb[j] = load_floats(b[j] + i);
      PERIGEE_UNROLL
      for (int k = 0; k < kA; k++) {
        const F va = load_floats(a[k] + i);
        PERIGEE_UNROLL
        for (int j = 0; j < kB; j++) acc[k * kB + j] = kFused ? mul_add(va, vb[j], acc[k * kB + j]) : add(acc[k * kB + j], mul(va, vb[j]));
      }
    }
    PERIGEE_UNROLL
    for (int p = 0; p < kA * kB; p++) sums[g][p] = acc[p];
  }
}

// The same for the last n - whole < 16 floats of the rows.
template <int kA, int kB>
PERIGEE_INLINE void dot_tile_tail(const float* const a[kA], const float* const b[kB], uint32_t whole, uint32_t n,
                                  F sums[kLaneVectors][kA * kB]) {
  if (whole == n) return;
  const float *last_a[kA], *last_b[kB];
  alignas(64) float copies[kA + kB][16] = {};
  for (int k = 0; k < kA; k++) last_a[k] = copies[k];
  for (int j = 0; j < kB; j++) last_b[j] = copies[kA + j];
  for (uint32_t i = whole; i < n; i++) {
    for (int k = 0; k < kA; k++) copies[k][i - whole] = a[k][i];
    for (int j = 0; j < kB; j++) copies[kA + j][i - whole] = b[j][i];
  }
  dot_tile<kA, kB>(last_a, last_b, 16, sums);
}

// Pair p's sum so far, folded to four lanes.
template <int kPairs>
PERIGEE_INLINE V pair_lanes(const F sums[kLaneVectors][kPairs], int p) {
  F lanes[kLaneVectors];
  for (int g = 0; g < kLaneVectors; g++) lanes[g] = sums[g][p];
  return fold_to_four(lanes);
}

// --- matmul with float activations --------------------------------------------------------------------------------------

// Whether n halfs, a multiple of 8, hold no infinity and no NaN.
bool all_finite(const uint8_t* w, uint32_t n) {
  V largest = zero();
  for (uint32_t i = 0; i < n; i += 8) largest = max16(largest, bit_and(load(w + 2 * size_t(i)), splat16(0x7fff)));
  int16_t lane[8];
  store(lane, largest);
  for (int16_t l : lane)
    if (l >= 0x7c00) return false;
  return true;
}

// kFloatLanes weights as floats, from element i of a row. kFinite: known to be finite, which can make halfs cheaper.
template <DType kType, bool kFinite = false>
PERIGEE_INLINE F load_weights(const uint8_t* w, uint32_t i) {
  if constexpr (kType == DType::F32) return load_floats(reinterpret_cast<const float*>(w) + i);
  else if constexpr (kType == DType::F16) return load_halfs<kFinite>(w + 2 * size_t(i));
  else return load_bf16(w + 2 * size_t(i));
}

template <DType kType, bool kFinite, int kN>
PERIGEE_INLINE void add_row(const uint8_t* w, uint32_t n, const float* const x[kN], Lanes16 lanes[kN]) {
  for (uint32_t i = 0; i < n; i += 16)
    for (int g = 0; g < kLaneVectors; g++) {
      const F weights = load_weights<kType, kFinite>(w, i + kFloatLanes * g);
      for (int t = 0; t < kN; t++) lanes[t].add_product(weights, load_floats(x[t] + i + kFloatLanes * g), g);
    }
}

// Decode: one weight row stream, kN activation rows.
template <DType kType, int kN>
PERIGEE_NOINLINE void gemv_float(const MatmulArgs& a) {
  const float* x[kN];
  for (int t = 0; t < kN; t++) x[t] = reinterpret_cast<const float*>(activation(a, t));
  const size_t stride = row_bytes(kType, a.cols);
  const uint32_t whole = a.cols & ~15u;
  for (uint32_t r = 0; r < a.rows; r++) {
    const uint8_t* w = a.w + r * stride;
    Lanes16 lanes[kN];
    if (kFiniteHalfsPay && kType == DType::F16 && all_finite(w, whole)) add_row<kType, true, kN>(w, whole, x, lanes);
    else add_row<kType, false, kN>(w, whole, x, lanes);
    if (whole < a.cols) {
      float rest[16] = {};
      dequantize_row(kType, w + row_bytes(kType, whole), a.cols - whole, rest);
      for (int t = 0; t < kN; t++) lanes[t].add_products(rest, Tail16(x[t] + whole, a.cols - whole).x);
    }
    for (int t = 0; t < kN; t++) a.y[t * a.y_stride + r] = lanes[t].sum();
  }
}

constexpr uint32_t kFloatRows = kTileB, kFloatTokens = kTileA;
constexpr uint32_t kFloatCols = 256;  // columns at a time: 4 KiB of weights as floats
constexpr uint32_t kFloatPass = 48;   // activation rows per pass: their lanes take 12 KiB of stack

// 256 columns (or the last of them, zero padded to a multiple of 16) of one weight row as floats.
template <DType kType>
PERIGEE_INLINE void float_weights(const uint8_t* w, uint32_t count, float out[kFloatCols]) {
  const uint32_t padded = (count + 15) & ~15u;
  if constexpr (kType == DType::F16 || kType == DType::BF16) {
    const uint32_t whole = count & ~15u;
    for (uint32_t i = 0; i < whole; i += kFloatLanes) store_floats(out + i, load_weights<kType>(w, i));
    dequantize_row(kType, w + row_bytes(kType, whole), count - whole, out + whole);
  } else {
    dequantize_row(kType, w, count, out);
  }
  for (uint32_t i = count; i < padded; i++) out[i] = 0.0f;
}

// Which sums of a pass's activation rows belong to the tile that starts with activation row t.
struct PassLanes {
  F lane[kFloatPass * kFloatRows * kLaneVectors];

  template <int kT>
  PERIGEE_INLINE auto tile(uint32_t t) {
    return reinterpret_cast<F(*)[kT * kFloatRows]>(lane + t * kFloatRows * kLaneVectors);
  }
};

template <int kT>
PERIGEE_INLINE void float_tile(const float* const x[kT], const float* w, uint32_t c, uint32_t count,
                               F sums[kLaneVectors][kT * kFloatRows]) {
  const float* rows[kFloatRows];
  for (uint32_t i = 0; i < kFloatRows; i++) rows[i] = w + i * kFloatCols;
  const float* tokens[kT];
  for (int t = 0; t < kT; t++) tokens[t] = x[t] + c;
  const uint32_t whole = count & ~15u;
  dot_tile<kT, kFloatRows>(tokens, rows, whole, sums);
  dot_tile_tail<kT, kFloatRows>(tokens, rows, whole, count, sums);
}

template <int kT>
PERIGEE_INLINE void float_results(const MatmulArgs& a, uint32_t token, uint32_t r, uint32_t rows,
                                  const F sums[kLaneVectors][kT * kFloatRows]) {
  for (int t = 0; t < kT; t++)
    for (uint32_t i = 0; i < rows; i++)
      a.y[(token + t) * a.y_stride + r + i] = fold4(pair_lanes<kT * kFloatRows>(sums, t * kFloatRows + i));
}

// Calls tile(width, t) for n rows in tiles of kTileA, the last one narrower.
template <typename Tile>
PERIGEE_INLINE void for_tiles(uint32_t n, Tile tile) {
  uint32_t t = 0;
  for (; t + kTileA <= n; t += kTileA) tile(std::integral_constant<int, kTileA>(), t);
  if (kTileA > 3 && n - t == 3) tile(std::integral_constant<int, 3>(), t);
  if (n - t == 2) tile(std::integral_constant<int, 2>(), t);
  if (n - t == 1) tile(std::integral_constant<int, 1>(), t);
}

template <DType kType>
PERIGEE_NOINLINE void float_pass(const MatmulArgs& a, uint32_t start, uint32_t n) {
  const float* x[kFloatPass];
  for (uint32_t t = 0; t < n; t++) x[t] = reinterpret_cast<const float*>(activation(a, start + t));
  const size_t stride = row_bytes(kType, a.cols);
  PassLanes lanes;
  alignas(64) float w[kFloatRows * kFloatCols] = {};
  for (uint32_t r = 0; r < a.rows; r += kFloatRows) {
    const uint32_t rows = a.rows - r < kFloatRows ? a.rows - r : kFloatRows;
    for (uint32_t i = 0; i < n * kFloatRows * kLaneVectors; i++) lanes.lane[i] = floats(0.0f);
    for (uint32_t c = 0; c < a.cols; c += kFloatCols) {
      const uint32_t count = a.cols - c < kFloatCols ? a.cols - c : kFloatCols;
      for (uint32_t i = 0; i < rows; i++)
        float_weights<kType>(a.w + (r + i) * stride + row_bytes(kType, c), count, w + i * kFloatCols);
      for_tiles(n, [&](auto width, uint32_t t) {
        constexpr int kT = decltype(width)::value;
        float_tile<kT>(x + t, w, c, count, lanes.tile<kT>(t));
      });
    }
    for_tiles(n, [&](auto width, uint32_t t) {
      constexpr int kT = decltype(width)::value;
      float_results<kT>(a, start + t, r, rows, lanes.tile<kT>(t));
    });
  }
}

template <DType kType>
void matmul_float(const MatmulArgs& a) {
  if constexpr (kType == DType::F32 || kType == DType::F16 || kType == DType::BF16) {
    if (a.n == 1) return gemv_float<kType, 1>(a);
    if (a.n == 2) return gemv_float<kType, 2>(a);
    if (a.n == 3) return gemv_float<kType, 3>(a);
    if (a.n == 4) return gemv_float<kType, 4>(a);
  }
  for (uint32_t start = 0; start < a.n; start += kFloatPass)
    float_pass<kType>(a, start, a.n - start < kFloatPass ? a.n - start : kFloatPass);
}
