// Activation rows (quant/activation.h), 64 quants at a time.

// The least and greatest of 0 and kCount vectors of 16 floats.
template <int kCount>
PERIGEE_INLINE void range_of(const float* x, float& low, float& high) {
  F l[4], h[4];
  PERIGEE_UNROLL
  for (int i = 0; i < 4; i++) l[i] = h[i] = floats(0.0f);
  PERIGEE_UNROLL
  for (int i = 0; i < kCount; i++) {
    const F v = load_floats(x + 16 * i);
    l[i % 4] = min_or_first(l[i % 4], v);
    h[i % 4] = max_or_first(h[i % 4], v);
  }
  low = _mm512_reduce_min_ps(min_or_first(min_or_first(l[0], l[1]), min_or_first(l[2], l[3])));
  high = _mm512_reduce_max_ps(max_or_first(max_or_first(h[0], h[1]), max_or_first(h[2], h[3])));
}

// x * scale rounded to nearest even, within -127..127; NaN gives -127.
PERIGEE_INLINE W quantized16(const float* x, F scale) {
  const F v = max_or_first(floats(-127.0f), mul(load_floats(x), scale));
  return _mm512_cvtps_epi32(min_or_first(v, floats(127.0f)));
}

// 64 quants; the scales of their upper 32 may be others.
PERIGEE_INLINE W quantized64(const float* x, F scale, F upper_scale) {
  const W low = _mm512_packs_epi32(quantized16(x, scale), quantized16(x + 16, scale));
  const W high = _mm512_packs_epi32(quantized16(x + 32, upper_scale), quantized16(x + 48, upper_scale));
  const W order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
}

// Sums of four neighbouring quants.
PERIGEE_INLINE W sums_of_quads(W q) { return _mm512_dpbusd_epi32(_mm512_setzero_si512(), wide8(1), q); }

void wide_quantize_q8_k(const float* x, uint32_t cols, uint8_t* out) {
  const uint32_t blocks = cols / 256;
  const Q8_KRow row = q8_k_row(out, cols);
  auto* q = const_cast<int8_t*>(row.q);
  auto* d = const_cast<float*>(row.d);
  // Sub-block 4 i + j is lane 4 j + i of four transposed vectors of sums.
  const W order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  for (uint32_t b = 0; b < blocks; b++, x += 256, q += 256) {
    float low, high;
    range_of<16>(x, low, high);
    const float peak = high >= -low ? high : low;
    const bool flat = peak < kSmallestMagnitude && peak > -kSmallestMagnitude;
    const float inverse = flat ? 0.0f : -127.0f / peak;
    d[b] = flat ? 0.0f : 1.0f / inverse;
    W quads[4];
    PERIGEE_UNROLL
    for (int i = 0; i < 4; i++) {
      const W codes = quantized64(x + 64 * i, floats(inverse), floats(inverse));
      _mm512_storeu_si512(q + 64 * i, codes);
      quads[i] = sums_of_quads(codes);
    }
    const W ab = _mm512_add_epi32(zip_low32(quads[0], quads[1]), zip_high32(quads[0], quads[1]));
    const W cd = _mm512_add_epi32(zip_low32(quads[2], quads[3]), zip_high32(quads[2], quads[3]));
    const W sums = _mm512_add_epi32(zip_low64(ab, cd), zip_high64(ab, cd));
    const __m256i sum16 = _mm512_cvtepi32_epi16(_mm512_permutexvar_epi32(order, sums));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(const_cast<int16_t*>(row.sum16 + 16 * b)), sum16);
    const __m128i sum32 = _mm256_cvtepi32_epi16(_mm256_madd_epi16(sum16, _mm256_set1_epi16(1)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(const_cast<int16_t*>(row.sum32 + 8 * b)), sum32);
  }
  for (uint32_t b = blocks; b < pad4(blocks); b++) d[b] = 0.0f;
}

// Scale of one block of 32 of Q8_0, and what its floats are multiplied with.
PERIGEE_INLINE F take_scale(const float* x, float& d) {
  float low, high;
  range_of<2>(x, low, high);
  const float amax = high >= -low ? high : -low, scale = amax / 127.0f;
  d = half_to_float(float_to_half(scale));
  return floats(amax < kSmallestMagnitude ? 0.0f : 1.0f / scale);
}

void wide_quantize_q8_0(const float* x, uint32_t cols, uint8_t* out) {
  const uint32_t blocks = cols / 32;
  const Q8_0Row row = q8_0_row(out, cols);
  auto* q = const_cast<int8_t*>(row.q);
  auto* d = const_cast<float*>(row.d);
  auto* sum = const_cast<int32_t*>(row.sum);
  for (uint32_t b = 0; b < blocks; b += 2) {
    const bool pair = b + 1 < blocks;
    alignas(64) float last[64] = {};
    const float* from = x + 32 * size_t(b);
    if (!pair) {
      __builtin_memcpy(last, from, 32 * sizeof(float));
      from = last;
    }
    float scales[2];
    const F first = take_scale(from, scales[0]), second = take_scale(from + 32, scales[1]);
    const W codes = quantized64(from, first, second);
    const __m128i sums = quarter_sums(sums_of_quads(codes));  // of 16 each
    const __m128i halves = _mm_hadd_epi32(sums, sums);
    _mm512_mask_storeu_epi64(q + 32 * size_t(b), pair ? 0xff : 0x0f, codes);
    d[b] = scales[0];
    sum[b] = _mm_cvtsi128_si32(halves);
    if (pair) {
      d[b + 1] = scales[1];
      sum[b + 1] = _mm_extract_epi32(halves, 1);
    }
  }
  for (uint32_t b = blocks; b < pad4(blocks); b++) {
    d[b] = 0.0f;
    sum[b] = 0;
  }
}

void wide_quantize(Activation kind, const float* x, uint32_t cols, uint8_t* out) {
  switch (kind) {
    case Activation::F32:
      return quantize_row(kind, x, cols, out);
    case Activation::Q8_0:
      return wide_quantize_q8_0(x, cols, out);
    case Activation::Q8_K:
      return wide_quantize_q8_k(x, cols, out);
  }
}
