// Latent attention over pages: scores in tiles of query rows x positions while a page's keys are in L1, softmax per row,
// then the weighted sum of the values with a strip of the output in registers.

constexpr uint32_t kAttnRows = 3, kAttnKeys = 4;  // 12 accumulators and 7 operands of 16 registers
constexpr uint32_t kSpan = 8;                     // positions at a time: 18 KiB of keys of 576 floats

// Scores of kR query rows for kP positions.
template <int kR, int kP>
PERIGEE_INLINE void score_tile(const AttentionArgs& a, uint32_t row, const float* keys, uint32_t position) {
  const float* q[kR];
  const float* k[kP];
  for (int i = 0; i < kR; i++) q[i] = a.q + size_t(row + i) * a.key_dim;
  for (int j = 0; j < kP; j++) k[j] = keys + size_t(j) * a.key_dim;
  V sums[4][kR * kP];
  for (auto& group : sums)
    for (V& v : group) v = zero();
  const uint32_t whole = a.key_dim & ~15u;
  dot_tile<kR, kP>(q, k, whole, sums);
  if (whole < a.key_dim) {
    for (int i = 0; i < kR; i++)
      for (int j = 0; j < kP; j++) {
        const Tail16 tq(q[i] + whole, a.key_dim - whole), tk(k[j] + whole, a.key_dim - whole);
        for (int g = 0; g < 4; g++) {
          V& v = sums[g][i * kP + j];
          v = add(v, mul(load(tq.x + 4 * g), load(tk.x + 4 * g)));
        }
      }
  }
  for (int i = 0; i < kR; i++)
    for (int j = 0; j < kP; j++) {
      const int p = i * kP + j;
      a.scores[(row + i) * a.score_stride + position + j] =
          fold16(sums[0][p], sums[1][p], sums[2][p], sums[3][p]) * a.scale;
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

// Calls tile(width, row) for all rows in tiles of 3, 2 or 1.
template <typename Tile>
PERIGEE_INLINE void for_row_tiles(uint32_t rows, Tile tile) {
  uint32_t r = 0;
  for (; r + kAttnRows <= rows; r += kAttnRows) tile(std::integral_constant<int, kAttnRows>(), r);
  if (rows - r == 2) tile(std::integral_constant<int, 2>(), r);
  if (rows - r == 1) tile(std::integral_constant<int, 1>(), r);
}

// A run of positions inside one page, short enough to stay in L1 while all query rows meet it.
struct Span {
  const float* keys;  // [count][key_dim]
  uint32_t position, count;
};

// Calls body(width, row, count, span) for every span and row tile with the positions all its rows see, and then with
// width 1 for those only some see.
template <typename Body>
PERIGEE_INLINE void for_spans(const AttentionArgs& a, Body body) {
  const uint32_t longest = Lengths(a, 0, a.rows).longest;
  for (uint32_t position = 0; position < longest;) {
    const uint32_t offset = position % a.page_tokens;
    const Span span = {a.pages[position / a.page_tokens] + size_t(offset) * a.key_dim, position,
                       least(least(kSpan, a.page_tokens - offset), longest - position)};
    for_row_tiles(a.rows, [&](auto width, uint32_t row) {
      constexpr int kR = decltype(width)::value;
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
template <int kR>
PERIGEE_INLINE void score_rows(const AttentionArgs& a, uint32_t row, const Span& span) {
  uint32_t j = 0;
  for (; j + kAttnKeys <= span.count; j += kAttnKeys)
    score_tile<kR, kAttnKeys>(a, row, span.keys + size_t(j) * a.key_dim, span.position + j);
  for (; j < span.count; j++) score_tile<kR, 1>(a, row, span.keys + size_t(j) * a.key_dim, span.position + j);
}

// out += sum of p_j v_j over a span, for kR query rows, 16 columns at a time in registers.
template <int kR>
PERIGEE_INLINE void value_rows(const AttentionArgs& a, uint32_t row, const Span& span) {
  float* out[kR];
  const float* p[kR];
  for (int i = 0; i < kR; i++) {
    out[i] = a.out + size_t(row + i) * a.value_dim;
    p[i] = a.scores + (row + i) * a.score_stride + span.position;
  }
  uint32_t c = 0;
  for (; c + 16 <= a.value_dim; c += 16) {
    V acc[kR][4];
    for (int i = 0; i < kR; i++)
      for (int g = 0; g < 4; g++) acc[i][g] = load(out[i] + c + 4 * g);
    const float* v = span.keys + c;
    for (uint32_t j = 0; j < span.count; j++, v += a.key_dim) {
      V value[4];
      for (int g = 0; g < 4; g++) value[g] = load(v + 4 * g);
      for (int i = 0; i < kR; i++) {
        const V weight = load_splat32(p[i] + j);
        for (int g = 0; g < 4; g++) acc[i][g] = add(acc[i][g], mul(weight, value[g]));
      }
    }
    for (int i = 0; i < kR; i++)
      for (int g = 0; g < 4; g++) store(out[i] + c + 4 * g, acc[i][g]);
  }
  if (c == a.value_dim) return;
  for (int i = 0; i < kR; i++)
    for (uint32_t j = 0; j < span.count; j++)
      axpy(p[i][j], span.keys + size_t(j) * a.key_dim + c, a.value_dim - c, out[i] + c);
}

void attention(const AttentionArgs& a) {
  for_spans(a, [&](auto width, uint32_t row, const Span& span) { score_rows<decltype(width)::value>(a, row, span); });
  for (uint32_t r = 0; r < a.rows; r++) softmax(a.scores + r * a.score_stride, length_of(a, r));
  for (size_t i = 0; i < size_t(a.rows) * a.value_dim; i++) a.out[i] = 0.0f;
  for_spans(a, [&](auto width, uint32_t row, const Span& span) { value_rows<decltype(width)::value>(a, row, span); });
}
