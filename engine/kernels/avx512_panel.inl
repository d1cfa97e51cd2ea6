// How 512-bit panels multiply. A register tile is 32 rows x up to 6 activation rows: 12 sums of a sub-block, 12 of a
// superblock, and one load for every 1.5 dots, of which this takes two a cycle.

// Superblocks with signed meanings keep signed codes and meet activations 128 above theirs; what that adds to a row's
// sum depends on the weights alone (excess). The others keep unsigned codes.
template <typename Format>
constexpr bool kShiftedX = Format::kSuper && (Format::kSigned || Format::kOffset != 0);

// Four codes of each row times four elements of an activation row.
template <typename Format>
PERIGEE_INLINE W quad_dot(W sum, W codes, W x) {
  return kShiftedX<Format> ? _mm512_dpbusd_epi32(sum, x, codes) : _mm512_dpbusd_epi32(sum, codes, x);
}

template <typename Format>
void finish_panel(WidePanel<Format>& panel, uint32_t g) {
  if constexpr (kShiftedX<Format>) {
    constexpr int kQuads = 64 / Format::kSubs;
    W sum = _mm512_setzero_si512();
    for (int s = 0; s < Format::kSubs; s++) {
      W sub = _mm512_setzero_si512();
      for (int i = 0; i < kQuads; i++) sub = quad_dot<Format>(sub, panel.w[kQuads * s + i][g], wide8(128));
      sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(sub, panel.scale[s][g]));
    }
    panel.excess[g] = sum;
  }
}

// Dots of elements [4 from, 4 (from + kCount)) added to sum.
template <typename Format, int kT, int kCount>
PERIGEE_INLINE void wide_dots(const WidePanel<Format>& panel, const int8_t* const q[kT], int from,
                              W sum[kT][kWideGroups]) {
  PERIGEE_UNROLL
  for (int i = from; i < from + kCount; i++) {
    const W w0 = panel.w[i][0], w1 = panel.w[i][1];
    for (int t = 0; t < kT; t++) {
      const W x = wide32(load_i32(q[t] + 4 * i));
      sum[t][0] = quad_dot<Format>(sum[t][0], w0, x);
      sum[t][1] = quad_dot<Format>(sum[t][1], w1, x);
    }
  }
}

// Superblock b: one term per row and activation row.
template <typename Format, int kT>
PERIGEE_INLINE void super_tile(const WidePanel<Format>& panel, const Q8_KRow* x, uint32_t b, F* lanes) {
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
          msum = _mm512_dpwssd_epi32(msum, panel.min[p][g], wide32(load_i32(sums + 2 * p)));
        value = _mm512_sub_ps(value, _mm512_mul_ps(panel.m[0][g], _mm512_cvtepi32_ps(msum)));
      }
      F& lane = lanes[(4 * t + b % 4) * kWideGroups + g];
      lane = _mm512_add_ps(lane, _mm512_mul_ps(xd, value));
    }
  }
}

// Blocks first .. first + count of 32.
template <typename Format, int kT>
PERIGEE_INLINE void blocks_tile(const WidePanel<Format>& panel, const Q8_0Row* x, uint32_t first, uint32_t count,
                                F* lanes) {
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

template <typename Format, int kT>
void wide_tile(const WidePanel<Format>& panel, const WideRow<Format>* x, uint32_t first, uint32_t count, F* lanes) {
  if constexpr (Format::kSuper) super_tile<Format, kT>(panel, x, first, lanes);
  else blocks_tile<Format, kT>(panel, x, first, count, lanes);
}
