// Norms, activations, softmax and the quantization of activation rows.

// Calls `body` on each kFloatLanes floats of x[n] (floats, index); the last few go through a zero-padded copy.
template <typename Body>
PERIGEE_INLINE void map(float* x, uint32_t n, Body body) {
  uint32_t i = 0;
  for (; i + kFloatLanes <= n; i += kFloatLanes) store_floats(x + i, body(load_floats(x + i), i));
  if (i == n) return;
  alignas(64) float last[kFloatLanes] = {};
  for (uint32_t j = i; j < n; j++) last[j - i] = x[j];
  store_floats(last, body(load_floats(last), i));
  for (uint32_t j = i; j < n; j++) x[j] = last[j - i];
}

// exp_float: the same steps.
PERIGEE_INLINE F exp_floats(F x) {
  using E = ExpFloat;
  x = min_or_first(max_or_first(x, floats(E::kLow)), floats(E::kHigh));
  const F shifted = add(mul(x, floats(E::kLog2e)), floats(E::kRound));
  const F n = sub(shifted, floats(E::kRound));
  const F r = sub(sub(x, mul(n, floats(E::kLn2High))), mul(n, floats(E::kLn2Low)));
  F p = add(mul(floats(E::kP4), r), floats(E::kP3));
  p = add(mul(p, r), floats(E::kP2));
  p = add(mul(p, r), floats(E::kP1));
  p = add(mul(p, r), floats(E::kP0));
  const F y = add(floats(1.0f), add(r, mul(mul(r, r), p)));
  const F i = sub32(shifted, float_bits(E::kRoundBits));
  const F half = shift_right32s(i, 1);
  const F scale1 = shift_left32(add32(half, float_bits(127)), 23);
  const F scale2 = shift_left32(add32(sub32(i, half), float_bits(127)), 23);
  return mul(mul(y, scale1), scale2);
}

PERIGEE_INLINE F one_plus_exp_minus(F x) { return add(floats(1.0f), exp_floats(negate(x))); }

void rms_norm(const float* x, const float* weight, float eps, uint32_t n, float* y) {
  const float scale = 1.0f / sqrt_float(dot_float(x, x, n) / float(n) + eps);
  uint32_t i = 0;
  for (; i + kFloatLanes <= n; i += kFloatLanes)
    store_floats(y + i, mul(mul(load_floats(x + i), floats(scale)), load_floats(weight + i)));
  for (; i < n; i++) y[i] = x[i] * scale * weight[i];
}

void silu_mul(float* gate, const float* up, uint32_t n) {
  const uint32_t whole = n - n % kFloatLanes;
  map(gate, whole, [up](F x, uint32_t i) { return mul(div(x, one_plus_exp_minus(x)), load_floats(up + i)); });
  for (uint32_t i = whole; i < n; i++) gate[i] = gate[i] / (1.0f + exp_float(-gate[i])) * up[i];
}

void sigmoid(float* x, uint32_t n) {
  map(x, n, [](F v, uint32_t) { return div(floats(1.0f), one_plus_exp_minus(v)); });
}

float max_of(const float* x, uint32_t n) {
  float max = x[0];
  uint32_t i = 0;
  if (n >= kFloatLanes) {
    F m = load_floats(x);
    for (i = kFloatLanes; i + kFloatLanes <= n; i += kFloatLanes) m = max_or_first(m, load_floats(x + i));
    alignas(64) float lane[kFloatLanes];
    store_floats(lane, m);
    for (float l : lane) max = l > max ? l : max;
  }
  for (; i < n; i++) max = x[i] > max ? x[i] : max;
  return max;
}

float sum_float(const float* x, uint32_t n) {
  Lanes16 lanes;
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16) lanes.add_floats(x + i);
  if (i < n) lanes.add_floats(Tail16(x + i, n - i).x);
  return lanes.sum();
}

void softmax(float* x, uint32_t n) {
  const float max = max_of(x, n);
  map(x, n, [max](F v, uint32_t) { return exp_floats(sub(v, floats(max))); });
  const float sum = sum_float(x, n);
  map(x, n, [sum](F v, uint32_t) { return div(v, floats(sum)); });
}

void axpy(float a, const float* x, uint32_t n, float* y) {
  uint32_t i = 0;
  for (; i + kFloatLanes <= n; i += kFloatLanes)
    store_floats(y + i, add(load_floats(y + i), mul(floats(a), load_floats(x + i))));
  for (; i < n; i++) y[i] += a * x[i];
}

// twelve_bits: the same steps.
void to_twelve_bits(float* x, uint32_t n) {
  using T = TwelveBits;
  map(x, n, [](F v, uint32_t) {
    v = min_or_first(max_or_first(v, floats(-T::kMost)), floats(T::kMost));
    v = sub(add(v, floats(T::kGrid)), floats(T::kGrid));
    const F high = mul(v, floats(T::kSplit));
    return sub(high, sub(high, v));
  });
}

// --- activation rows (quant/activation.h) -------------------------------------------------------------------------------

struct Range {
  float low, high;
};

// The least and greatest of 0 and x[n], n a multiple of 4.
PERIGEE_INLINE Range range_of(const float* x, uint32_t n) {
  V low = zero(), high = zero();
  for (uint32_t i = 0; i < n; i += 4) {
    const V v = load(x + i);
    low = min_or_first(low, v);
    high = max_or_first(high, v);
  }
  alignas(16) float l[4], h[4];
  store(l, low);
  store(h, high);
  Range range = {l[0], h[0]};
  for (int j = 1; j < 4; j++) {
    range.low = l[j] < range.low ? l[j] : range.low;
    range.high = h[j] > range.high ? h[j] : range.high;
  }
  return range;
}

// x * scale rounded to nearest even, within -127..127.
PERIGEE_INLINE V quantized4(const float* x, V scale) {
  const V v = min_or_first(max_or_first(splat_float(-127.0f), mul(load(x), scale)), splat_float(127.0f));
  return sub32(add(v, splat_float(0x1.8p23f)), splat32(0x4b400000));
}

// 16 quants to q; returns their sum.
PERIGEE_INLINE int32_t quantize16(const float* x, V scale, int8_t* q) {
  const V a = quantized4(x, scale), b = quantized4(x + 4, scale);
  const V c = quantized4(x + 8, scale), d = quantized4(x + 12, scale);
  store(q, narrow16(narrow32(a, b), narrow32(c, d)));
  alignas(16) int32_t sum[4];
  store(sum, add32(add32(a, b), add32(c, d)));
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void quantize_q8_0(const float* x, uint32_t cols, uint8_t* out) {
  const uint32_t blocks = cols / 32;
  auto* q = reinterpret_cast<int8_t*>(out);
  auto* d = reinterpret_cast<float*>(out + cols);
  auto* sum = reinterpret_cast<int32_t*>(d + pad4(blocks));
  for (uint32_t b = 0; b < blocks; b++) {
    const Range range = range_of(x + 32 * b, 32);
    const float amax = range.high >= -range.low ? range.high : -range.low;
    const float scale = amax / 127.0f;
    const V inverse = splat_float(amax < kSmallestMagnitude ? 0.0f : 1.0f / scale);
    d[b] = half_to_float(float_to_half(scale));
    sum[b] = quantize16(x + 32 * b, inverse, q + 32 * b) + quantize16(x + 32 * b + 16, inverse, q + 32 * b + 16);
  }
  for (uint32_t b = blocks; b < pad4(blocks); b++) {
    d[b] = 0.0f;
    sum[b] = 0;
  }
}

void quantize_q8_k(const float* x, uint32_t cols, uint8_t* out) {
  const uint32_t blocks = cols / 256;
  auto* q = reinterpret_cast<int8_t*>(out);
  auto* d = reinterpret_cast<float*>(out + cols);
  auto* sum32 = reinterpret_cast<int16_t*>(d + pad4(blocks));
  auto* sum16 = sum32 + 8 * blocks;
  for (uint32_t b = 0; b < blocks; b++) {
    const Range range = range_of(x + 256 * b, 256);
    const float peak = range.high >= -range.low ? range.high : range.low;
    const bool flat = peak < kSmallestMagnitude && peak > -kSmallestMagnitude;
    const float inverse = flat ? 0.0f : -127.0f / peak;
    d[b] = flat ? 0.0f : 1.0f / inverse;
    for (uint32_t s = 8 * b; s < 8 * b + 8; s++) {
      const int32_t even = quantize16(x + 32 * s, splat_float(inverse), q + 32 * s);
      const int32_t odd = quantize16(x + 32 * s + 16, splat_float(inverse), q + 32 * s + 16);
      sum16[2 * s] = int16_t(even);
      sum16[2 * s + 1] = int16_t(odd);
      sum32[s] = int16_t(even + odd);
    }
  }
  for (uint32_t b = blocks; b < pad4(blocks); b++) d[b] = 0.0f;
}

void quantize(Activation kind, const float* x, uint32_t cols, uint8_t* out) {
  switch (kind) {
    case Activation::F32:
      return quantize_row(kind, x, cols, out);
    case Activation::Q8_0:
      return quantize_q8_0(x, cols, out);
    case Activation::Q8_K:
      return quantize_q8_k(x, cols, out);
  }
}
