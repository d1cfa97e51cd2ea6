// Latent attention over pages: scores in tiles of query rows x positions, softmax per row, then the weighted sum of the
// values with a strip of the output in registers.

// Positions at a time. Scores: 18 KiB of keys of 576 floats stay in L1 while the query rows meet them. Values: a strip's
// sums are read and written once per span, so longer ones pay; 16 positions are 32 KiB.
constexpr uint32_t kScoreSpan = 8, kValueSpan = 16;
// Query rows that meet all keys before the next do: with their scores they stay in L2.
constexpr uint32_t kBlockRows = 16 * kTileA;

// Scores of kR query rows for kP positions. kFused, here and below: products are exact.
template <bool kFused, int kR, int kP>
PERIGEE_INLINE void score_tile(const AttentionArgs& a, uint32_t row, const float* keys, uint32_t position) {
  const float *q[kR], *k[kP];
  for (int i = 0; i < kR; i++) q[i] = a.q + size_t(row + i) * a.key_dim;
  for (int j = 0; j < kP; j++) k[j] = keys + size_t(j) * a.key_dim;
  F sums[kLaneVectors][kR * kP];
  for (auto& group : sums)
    for (F& v : group) v = floats(0.0f);
  const uint32_t whole = a.key_dim & ~15u;
  dot_tile<kR, kP, kFused>(q, k, whole, sums);
  dot_tile_tail<kR, kP>(q, k, whole, a.key_dim, sums);
  for (int i = 0; i < kR; i++) {
    float* scores = a.scores + (row + i) * a.score_stride + position;
    const auto lanes = [&](int j) { return pair_lanes<kR * kP>(sums, i * kP + j); };
    if constexpr (kP == 4) store(scores, mul(fold4_each(lanes(0), lanes(1), lanes(2), lanes(3)), splat_float(a.scale)));
    else
      for (int j = 0; j < kP; j++) scores[j] = fold4(lanes(j)) * a.scale;
  }
}

PERIGEE_INLINE uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

PERIGEE_INLINE uint32_t length_of(const AttentionArgs& a, uint32_t row) { return uint32_t(a.lengths[row]); }

// The shortest and the longest of `count` rows' lengths.
struct Lengths {
  uint32_t shortest, longest;

  PERIGEE_INLINE Lengths(const AttentionArgs& a, uint32_t row, uint32_t count)
      : shortest(length_of(a, row)), longest(length_of(a, row)) {
    for (uint32_t i = 1; i < count; i++) {
      const uint32_t length = length_of(a, row + i);
      shortest = length < shortest ? length : shortest;
      longest = length > longest ? length : longest;
    }
  }
};

// How many of the positions [position, position + count) a row of `length` sees.
PERIGEE_INLINE uint32_t seen(uint32_t length, uint32_t position, uint32_t count) {
  return length <= position ? 0 : least(length - position, count);
}

// A run of positions inside one page.
struct Span {
  const float* keys;  // [count][key_dim]
  uint32_t position, count;
};

// Calls body(width, row, span) for every span and row tile with the positions all its rows see, and then with width 1
// for those only some see.
template <typename Body>
PERIGEE_INLINE void for_spans(const AttentionArgs& a, uint32_t first, uint32_t rows, uint32_t length, Body body) {
  const uint32_t longest = Lengths(a, first, rows).longest;
  for (uint32_t position = 0; position < longest;) {
    const uint32_t offset = position % a.page_tokens;
    const Span span = {a.pages[position / a.page_tokens] + size_t(offset) * a.key_dim, position,
                       least(least(length, a.page_tokens - offset), longest - position)};
    for_tiles(rows, [&](auto width, uint32_t tile) {
      constexpr int kR = decltype(width)::value;
      const uint32_t row = first + tile;
      const uint32_t common = seen(Lengths(a, row, kR).shortest, position, span.count);
      if (common > 0) body(width, row, Span{span.keys, position, common});
      for (uint32_t i = 0; i < kR; i++) {
        const uint32_t own = seen(length_of(a, row + i), position, span.count);
        if (own > common)
          body(std::integral_constant<int, 1>(), row + i,
               Span{span.keys + size_t(common) * a.key_dim, position + common, own - common});
      }
    });
    position += span.count;
  }
}

// Scores of kR query rows for a span.
template <bool kFused, int kR>
PERIGEE_INLINE void score_rows(const AttentionArgs& a, uint32_t row, const Span& span) {
  uint32_t j = 0;
  for (; j + kTileB <= span.count; j += kTileB)
    score_tile<kFused, kR, kTileB>(a, row, span.keys + size_t(j) * a.key_dim, span.position + j);
  for (; j < span.count; j++) score_tile<kFused, kR, 1>(a, row, span.keys + size_t(j) * a.key_dim, span.position + j);
}

// Columns [c, c + kC vectors) of out += sum of p_j v_j over a span, for kR query rows, in registers. Every row's first
// span starts at position 0 and its sums at +0.0, whatever `out` holds.
// Rows are told by strides: pointers to each leave g++ too few registers.
template <bool kFused, int kR, int kC>
PERIGEE_NOINLINE void value_tile(const AttentionArgs& a, uint32_t row, const Span& span, uint32_t c) {
  float* out = a.out + size_t(row) * a.value_dim + c;
  const float* p = a.scores + row * a.score_stride + span.position;
  const size_t out_stride = a.value_dim, p_stride = a.score_stride, key_dim = a.key_dim;
  F acc[kR][kC];
  PERIGEE_UNROLL
  for (int i = 0; i < kR; i++) {
    PERIGEE_UNROLL
    for (int g = 0; g < kC; g++)
      acc[i][g] = span.position == 0 ? floats(0.0f) : load_floats(out + i * out_stride + kFloatLanes * g);
  }
  const float* v = span.keys + c;
  for (const float* end = p + span.count; p < end; p++, v += key_dim) {
    F value[kC];
    PERIGEE_UNROLL
    for (int g = 0; g < kC; g++) value[g] = load_floats(v + kFloatLanes * g);
    PERIGEE_UNROLL
    for (int i = 0; i < kR; i++) {
      const F weight = floats(p[i * p_stride]);
      PERIGEE_UNROLL
      for (int g = 0; g < kC; g++) acc[i][g] = kFused ? mul_add(weight, value[g], acc[i][g]) : add(acc[i][g], mul(weight, value[g]));
    }
  }
  PERIGEE_UNROLL
  for (int i = 0; i < kR; i++) {
    PERIGEE_UNROLL
    for (int g = 0; g < kC; g++) store_floats(out + i * out_stride + kFloatLanes * g, acc[i][g]);
  }
}

// out += sum of p_j v_j over a span, for kR query rows.
template <bool kFused, int kR>
PERIGEE_INLINE void value_rows(const AttentionArgs& a, uint32_t row, const Span& span) {
  uint32_t c = 0;
  for (; c + kTileB * kFloatLanes <= a.value_dim; c += kTileB * kFloatLanes) value_tile<kFused, kR, kTileB>(a, row, span, c);
  for (; c + kFloatLanes <= a.value_dim; c += kFloatLanes) value_tile<kFused, kR, 1>(a, row, span, c);
  for (uint32_t i = row; i < row + kR && c < a.value_dim; i++) {
    float* rest = a.out + size_t(i) * a.value_dim + c;
    for (uint32_t k = 0; k < a.value_dim - c && span.position == 0; k++) rest[k] = 0.0f;
    for (uint32_t j = 0; j < span.count; j++)
      axpy(a.scores[i * a.score_stride + span.position + j], span.keys + size_t(j) * a.key_dim + c, a.value_dim - c, rest);
  }
}

// The two passes are functions of their own: compilers then find registers for each tile.
template <bool kFused>
PERIGEE_NOINLINE void score_block(const AttentionArgs& a, uint32_t first, uint32_t rows) {
  for_spans(a, first, rows, kScoreSpan,
            [&](auto width, uint32_t row, const Span& span) { score_rows<kFused, decltype(width)::value>(a, row, span); });
}

template <bool kFused>
PERIGEE_NOINLINE void value_block(const AttentionArgs& a, uint32_t first, uint32_t rows) {
  for_spans(a, first, rows, kValueSpan,
            [&](auto width, uint32_t row, const Span& span) { value_rows<kFused, decltype(width)::value>(a, row, span); });
}

template <bool kFused>
void attend(const AttentionArgs& a) {
  for (uint32_t first = 0; first < a.rows; first += kBlockRows) {
    const uint32_t rows = least(kBlockRows, a.rows - first);
    score_block<kFused>(a, first, rows);
    for (uint32_t r = first; r < first + rows; r++) {
      softmax(a.scores + r * a.score_stride, length_of(a, r));
      if (kFused) to_twelve_bits(a.scores + r * a.score_stride, length_of(a, r));
    }
    value_block<kFused>(a, first, rows);
  }
}

void attention(const AttentionArgs& a) { a.exact ? attend<false>(a) : attend<true>(a); }
