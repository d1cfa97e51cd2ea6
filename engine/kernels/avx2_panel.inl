// How 256-bit panels multiply. A register tile is 16 rows x up to 4 activation rows: eight 16-bit sums that meet their scales
// before they could overflow, and three loads for four dots.

// Superblocks with signed meanings of few bits meet activations 128 above theirs; what that adds to a row's sum depends on
// the weights alone (excess).
template <typename Format>
constexpr bool kShiftedX = Format::kSuper && Format::kOffset != 0;

// Four codes of each row times four elements of an activation row, as two 16-bit sums.
template <typename Format>
PERIGEE_INLINE W quad_dot(W codes, W x) {
  if constexpr (kShiftedX<Format>) return _mm256_maddubs_epi16(x, codes);
  else return dot8<Format::kSigned>(x, codes);
}

// How many of those have one scale and add up within 16 bits.
template <typename Format>
constexpr int quad_run() {
  constexpr int kLargest = kShiftedX<Format> ? 255 * Format::kOffset : 127 * Format::kMax;
  int run = Format::kSuper ? 64 / Format::kSubs : 8;
  while (2 * kLargest * run >= 32768) run /= 2;
  return run;
}

// Sums of quad_run quads from `from` on.
template <typename Format, int kT>
PERIGEE_INLINE void run_dots(const WidePanel<Format>& panel, const int8_t* const q[kT], int from,
                             W run[kT][kWideGroups]) {
  repeat<quad_run<Format>()>([&](auto i) {
    for (int t = 0; t < kT; t++) {
      const W x = wide32(load_i32(q[t] + 4 * (from + i)));
      for (uint32_t g = 0; g < kWideGroups; g++) {
        const W dot = quad_dot<Format>(panel.w[from + i][g], x);
        run[t][g] = i == 0 ? dot : in_order(add16(run[t][g], dot));
      }
    }
  });
}

template <typename Format>
void finish_panel(WidePanel<Format>& panel, uint32_t g) {
  if constexpr (kShiftedX<Format>) {
    constexpr int kRun = quad_run<Format>(), kQuads = 64 / Format::kSubs;
    W sum = wide_zero();
    for (int i = 0; i < 64; i += kRun) {
      W run = quad_dot<Format>(panel.w[i][g], wide8(128));
      for (int j = 1; j < kRun; j++) run = add16(run, quad_dot<Format>(panel.w[i + j][g], wide8(128)));
      sum = add32(sum, dot16(run, panel.scale[i / kQuads][g]));
    }
    panel.excess[g] = sum;
  }
}

PERIGEE_INLINE F to_floats(W v) { return _mm256_cvtepi32_ps(v); }

// Superblock b: one term per row and activation row.
template <typename Format, int kT>
PERIGEE_INLINE void super_tile(const WidePanel<Format>& panel, const Q8_KRow* x, uint32_t b, F* lanes) {
  using Panel = WidePanel<Format>;
  constexpr int kQuads = 64 / Panel::kSubs;
  const int8_t* q[kT];
  alignas(32) int8_t raised[kT][256];
  W isum[kT][kWideGroups];
  for (int t = 0; t < kT; t++) {
    q[t] = x[t].q + 256 * b;
    if constexpr (kShiftedX<Format>) {
      for (int c = 0; c < 256; c += 32)
        _mm256_store_si256(reinterpret_cast<W*>(raised[t] + c), _mm256_xor_si256(load_wide(q[t] + c), wide8(128)));
      q[t] = raised[t];
    }
    for (uint32_t g = 0; g < kWideGroups; g++)
      isum[t][g] = kShiftedX<Format> ? sub32(wide_zero(), panel.excess[g]) : wide_zero();
  }
  for (int s = 0; s < Panel::kSubs; s++)
    for (int i = kQuads * s; i < kQuads * (s + 1); i += quad_run<Format>()) {
      W run[kT][kWideGroups];
      run_dots<Format, kT>(panel, q, i, run);
      for (int t = 0; t < kT; t++)
        for (uint32_t g = 0; g < kWideGroups; g++) isum[t][g] = add32(isum[t][g], dot16(run[t][g], panel.scale[s][g]));
    }
  for (int t = 0; t < kT; t++) {
    const F xd = floats(x[t].d[b]);
    for (uint32_t g = 0; g < kWideGroups; g++) {
      F value = mul(panel.d[0][g], to_floats(isum[t][g]));
      if constexpr (Format::kHasMin) {
        const int16_t* sums = Panel::kSubs == 8 ? x[t].sum32 + 8 * b : x[t].sum16 + 16 * b;
        W msum = wide_zero();
        for (int p = 0; p < Panel::kMinPairs; p++)
          msum = add32(msum, dot16(panel.min[p][g], wide32(load_i32(sums + 2 * p))));
        value = sub(value, mul(panel.m[0][g], to_floats(msum)));
      }
      F& lane = lanes[(4 * t + b % 4) * kWideGroups + g];
      lane = add(lane, mul(xd, value));
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
      for (uint32_t g = 0; g < kWideGroups; g++) isum[t][g] = wide32(-Format::kOffset * x[t].sum[b]);
    for (int j = 0; j < 8; j += quad_run<Format>()) {
      W run[kT][kWideGroups];
      run_dots<Format, kT>(panel, q, int(8 * i) + j, run);
      for (int t = 0; t < kT; t++)
        for (uint32_t g = 0; g < kWideGroups; g++) isum[t][g] = add32(isum[t][g], pair_sums16(run[t][g]));
    }
    for (int t = 0; t < kT; t++) {
      const F xd = floats(x[t].d[b]), xsum = floats(float(x[t].sum[b]));
      for (uint32_t g = 0; g < kWideGroups; g++) {
        const F d = panel.d[i][g], value = to_floats(isum[t][g]);
        F& lane = lanes[(4 * t + b % 4) * kWideGroups + g];
        if constexpr (Format::kHasMin) lane = add(lane, mul(xd, add(mul(d, value), mul(panel.m[i][g], xsum))));
        else lane = add(lane, mul(mul(d, xd), value));
      }
    }
  }
}

template <typename Format, int kT>
void wide_tile(const WidePanel<Format>& panel, const WideRow<Format>* x, uint32_t first, uint32_t count, F* lanes) {
  if constexpr (Format::kSuper) super_tile<Format, kT>(panel, x, first, lanes);
  else blocks_tile<Format, kT>(panel, x, first, count, lanes);
}
