// Float dots in rule 3's 16 lanes: one at a time, and in tiles for many rows against many.

// Sixteen running lanes; vector g holds lanes 4 g .. 4 g + 3.
struct Lanes16 {
  V lane[4] = {zero(), zero(), zero(), zero()};

  PERIGEE_INLINE void add_product(V w, V x, int g) { lane[g] = add(lane[g], mul(w, x)); }
  PERIGEE_INLINE float sum() const { return fold16(lane[0], lane[1], lane[2], lane[3]); }
};

// The last n < 16 floats of a row, zero beyond: they add +0.0 to lanes that get nothing.
struct Tail16 {
  alignas(16) float x[16] = {};

  PERIGEE_INLINE Tail16(const float* from, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) x[i] = from[i];
  }
};

float dot_float(const float* a, const float* b, uint32_t n) {
  Lanes16 lanes;
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int g = 0; g < 4; g++) lanes.add_product(load(a + i + 4 * g), load(b + i + 4 * g), g);
  if (i < n) {
    const Tail16 ta(a + i, n - i), tb(b + i, n - i);
    for (int g = 0; g < 4; g++) lanes.add_product(load(ta.x + 4 * g), load(tb.x + 4 * g), g);
  }
  return lanes.sum();
}

// A tile of dots, kA rows of a against kB rows of b. The lane groups are passed one after another over the same floats
// (which are in L1), so that a tile needs kA * kB accumulators and kA + kB loads, not four times as many.
// sums[g] are the lanes 4 g .. 4 g + 3 of every pair and run on from call to call; n is a multiple of 16.
template <int kA, int kB>
PERIGEE_INLINE void dot_tile(const float* const a[kA], const float* const b[kB], uint32_t n, V sums[4][kA * kB]) {
  for (int g = 0; g < 4; g++) {
    V acc[kA * kB];
    for (int p = 0; p < kA * kB; p++) acc[p] = sums[g][p];
    for (uint32_t i = 4 * g; i < n; i += 16) {
      V vb[kB];
      for (int j = 0; j < kB; j++) vb[j] = load(b[j] + i);
      for (int k = 0; k < kA; k++) {
        const V va = load(a[k] + i);
        for (int j = 0; j < kB; j++) acc[k * kB + j] = add(acc[k * kB + j], mul(va, vb[j]));
      }
    }
    for (int p = 0; p < kA * kB; p++) sums[g][p] = acc[p];
  }
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

// Four weights as floats, from element i of a row. kFinite: known to be finite, which makes halfs cheaper.
template <DType kType, bool kFinite = false>
PERIGEE_INLINE V load_weights(const uint8_t* w, uint32_t i) {
  if constexpr (kType == DType::F16 && kFinite) return finite_halfs_to_float(load_widen16(w + 2 * size_t(i)));
  if constexpr (kType == DType::F32) return load(w + 4 * size_t(i));
  else if constexpr (kType == DType::F16) return halfs_to_float(load_widen16u(w + 2 * size_t(i)));
  else return shift_left32(load_widen16u(w + 2 * size_t(i)), 16);
}

template <DType kType, bool kFinite, int kN>
PERIGEE_INLINE void add_row(const uint8_t* w, uint32_t n, const float* const x[kN], Lanes16 lanes[kN]) {
  for (uint32_t i = 0; i < n; i += 16)
    for (int g = 0; g < 4; g++) {
      const V weights = load_weights<kType, kFinite>(w, i + 4 * g);
      for (int t = 0; t < kN; t++) lanes[t].add_product(weights, load(x[t] + i + 4 * g), g);
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
    if (kType == DType::F16 && all_finite(w, whole)) add_row<kType, true, kN>(w, whole, x, lanes);
    else add_row<kType, false, kN>(w, whole, x, lanes);
    if (whole < a.cols) {
      float rest[16] = {};
      dequantize_row(kType, w + row_bytes(kType, whole), a.cols - whole, rest);
      for (int t = 0; t < kN; t++) {
        const Tail16 tail(x[t] + whole, a.cols - whole);
        for (int g = 0; g < 4; g++) lanes[t].add_product(load(rest + 4 * g), load(tail.x + 4 * g), g);
      }
    }
    for (int t = 0; t < kN; t++) a.y[t * a.y_stride + r] = lanes[t].sum();
  }
}

constexpr uint32_t kFloatRows = 4, kFloatTokens = 3;  // the register tile: 12 accumulators, 7 operands, of 16 registers
constexpr uint32_t kFloatCols = 256;                  // columns at a time: 4 KiB of weights as floats
constexpr uint32_t kFloatPass = 48;                   // activation rows per pass: their lanes take 12 KiB of stack

// 256 columns (or the last of them, zero padded to a multiple of 16) of one weight row as floats.
template <DType kType>
PERIGEE_INLINE void float_weights(const uint8_t* w, uint32_t count, float out[kFloatCols]) {
  const uint32_t padded = (count + 15) & ~15u;
  if constexpr (kType == DType::F16 || kType == DType::BF16) {
    const uint32_t whole = count & ~3u;
    for (uint32_t i = 0; i < whole; i += 4) store(out + i, load_weights<kType>(w, i));
    dequantize_row(kType, w + row_bytes(kType, whole), count - whole, out + whole);
  } else {
    dequantize_row(kType, w, count, out);
  }
  for (uint32_t i = count; i < padded; i++) out[i] = 0.0f;
}

template <int kT>
PERIGEE_INLINE void float_tile(const float* const x[kT], const float* w, uint32_t c, uint32_t count, V* lanes) {
  const float* rows[kFloatRows];
  for (uint32_t i = 0; i < kFloatRows; i++) rows[i] = w + i * kFloatCols;
  const float* tokens[kT];
  for (int t = 0; t < kT; t++) tokens[t] = x[t] + c;
  auto* sums = reinterpret_cast<V(*)[kT * kFloatRows]>(lanes);
  dot_tile<kT, kFloatRows>(tokens, rows, count & ~15u, sums);
  if (count % 16 == 0) return;
  const uint32_t whole = count & ~15u;
  for (int t = 0; t < kT; t++) {
    const Tail16 tail(tokens[t] + whole, count - whole);
    for (int g = 0; g < 4; g++)
      for (uint32_t i = 0; i < kFloatRows; i++) {
        V& lane = sums[g][t * kFloatRows + i];
        lane = add(lane, mul(load(tail.x + 4 * g), load(rows[i] + whole + 4 * g)));
      }
  }
}

template <int kT>
PERIGEE_INLINE void float_results(const MatmulArgs& a, uint32_t token, uint32_t r, uint32_t rows, const V* lanes) {
  const auto* sums = reinterpret_cast<const V(*)[kT * kFloatRows]>(lanes);
  for (int t = 0; t < kT; t++)
    for (uint32_t i = 0; i < rows; i++) {
      const uint32_t p = t * kFloatRows + i;
      a.y[(token + t) * a.y_stride + r + i] = fold16(sums[0][p], sums[1][p], sums[2][p], sums[3][p]);
    }
}

// Calls `tile` with the width 3, 2 or 1 of each tile of n activation rows.
template <typename Tile>
PERIGEE_INLINE void for_float_tiles(uint32_t n, Tile tile) {
  uint32_t t = 0;
  for (; t + 3 <= n; t += 3) tile(std::integral_constant<int, 3>(), t);
  if (n - t == 2) tile(std::integral_constant<int, 2>(), t);
  if (n - t == 1) tile(std::integral_constant<int, 1>(), t);
}

template <DType kType>
PERIGEE_NOINLINE void float_pass(const MatmulArgs& a, uint32_t start, uint32_t n) {
  constexpr uint32_t kTokenLanes = 4 * kFloatRows;
  const float* x[kFloatPass];
  for (uint32_t t = 0; t < n; t++) x[t] = reinterpret_cast<const float*>(activation(a, start + t));
  const size_t stride = row_bytes(kType, a.cols);
  V lanes[kFloatPass * kTokenLanes];
  alignas(16) float w[kFloatRows * kFloatCols] = {};
  for (uint32_t r = 0; r < a.rows; r += kFloatRows) {
    const uint32_t rows = a.rows - r < kFloatRows ? a.rows - r : kFloatRows;
    for (uint32_t i = 0; i < n * kTokenLanes; i++) lanes[i] = zero();
    for (uint32_t c = 0; c < a.cols; c += kFloatCols) {
      const uint32_t count = a.cols - c < kFloatCols ? a.cols - c : kFloatCols;
      for (uint32_t i = 0; i < rows; i++)
        float_weights<kType>(a.w + (r + i) * stride + row_bytes(kType, c), count, w + i * kFloatCols);
      for_float_tiles(n, [&](auto width, uint32_t t) {
        float_tile<decltype(width)::value>(x + t, w, c, count, lanes + t * kTokenLanes);
      });
    }
    for_float_tiles(n, [&](auto width, uint32_t t) {
      float_results<decltype(width)::value>(a, start + t, r, rows, lanes + t * kTokenLanes);
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
