#include "encode.h"

#include <string.h>

#include "blocks.h"
#include "fit.h"
#include "half.h"

namespace perigee {
namespace {

// 1 / d, or 0 for a grid that has collapsed to zero.
float inverse_of(float d) { return d != 0 ? 1 / d : 0; }

// Nibbles (and fifth bits) of 32 codes in the order of the 32-element formats.
void pack_32(const uint8_t* q, uint8_t* qs, uint8_t* qh) {
  uint32_t high = 0;
  for (uint32_t j = 0; j < 16; ++j) {
    qs[j] = uint8_t((q[j] & 15) | (q[j + 16] & 15) << 4);
    high |= uint32_t(q[j] >> 4 & 1) << j | uint32_t(q[j + 16] >> 4 & 1) << (j + 16);
  }
  if (qh) memcpy(qh, &high, 4);
}

void encode(const float* x, BlockQ8_0& out) {
  out.d = float_to_half(__builtin_fabsf(signed_max(x, 32)) / 127);
  const float inverse = inverse_of(half_to_float(out.d));
  for (uint32_t i = 0; i < 32; ++i) out.qs[i] = int8_t(clamp(nearest(x[i] * inverse), -128, 127));
}

// The scale and 32 codes of a symmetric format, codes counted from 0.
half encode_symmetric_32(const float* x, float half_range, uint8_t* q) {
  float w[32];
  error_weights(x, 32, w);
  const half d = float_to_half(fit_symmetric(x, w, 32, half_range));
  const float inverse = inverse_of(half_to_float(d));
  for (uint32_t i = 0; i < 32; ++i) {
    q[i] = uint8_t(clamp(nearest(x[i] * inverse), -half_range, half_range - 1) + half_range);
  }
  return d;
}

void encode(const float* x, BlockQ4_0& out) {
  uint8_t q[32];
  out.d = encode_symmetric_32(x, 8, q);
  pack_32(q, out.qs, nullptr);
}

void encode(const float* x, BlockQ5_0& out) {
  uint8_t q[32];
  out.d = encode_symmetric_32(x, 16, q);
  pack_32(q, out.qs, out.qh);
}

void encode(const float* x, BlockQ5_1& out) {
  float w[32];
  uint8_t q[32];
  error_weights(x, 32, w);
  const AffineFit fit = fit_affine(x, w, 32, 31, false);
  out.d = float_to_half(fit.d);
  // A step too fine for a half leaves one value for all: their middle, not their least.
  out.m = float_to_half(half_to_float(out.d) != 0 ? fit.o : fit.o + 15.5f * fit.d);
  const float inverse = inverse_of(half_to_float(out.d)), m = half_to_float(out.m);
  for (uint32_t i = 0; i < 32; ++i) q[i] = uint8_t(clamp(nearest((x[i] - m) * inverse), 0, 31));
  pack_32(q, out.qs, out.qh);
}

// --- superblocks with a six-bit scale and min per 32 elements: Q4_K, Q5_K -------------------------------------------------

struct Affine256 {
  half d, dmin;
  uint8_t scale[8], min[8];
  uint8_t q[256];
  float error;
};

// The weighted error of one sub-block on the grid d * q - m.
float affine_error(const float* x, const float* w, float d, float m, float levels) {
  const float inverse = inverse_of(d);
  Lanes error;
  for (uint32_t i = 0; i < 32; i += 4) {
    for (uint32_t l = 0; l < 4; ++l) {
      const float miss = x[i + l] - (d * clamp(nearest((x[i + l] + m) * inverse), 0, levels) - m);
      error.v[l] += w[i + l] * miss * miss;
    }
  }
  return error.total();
}

// The nearest integer scale and min, and one step of either: diagonal steps won 0.2 % of error for a third more time.
constexpr float kNear[5][2] = {{0, 0}, {-1, 0}, {1, 0}, {0, -1}, {0, 1}};

// Integer scales and mins next to the wanted ones, the pair with the least error per sub-block, and its codes.
void choose_affine(const float* x, const float* w, const float* scale, const float* min, float levels, Affine256& out) {
  const float d = half_to_float(out.d), dmin = half_to_float(out.dmin);
  out.error = 0;
  for (uint32_t s = 0; s < 8; ++s) {
    const float base = nearest(clamp(scale[s] * inverse_of(d), 0, 63));
    const float base_min = nearest(clamp(min[s] * inverse_of(dmin), 0, 63));
    float best = 3.0e38f;
    for (const auto& step : kNear) {
      const float sc = base + step[0], mn = base_min + step[1];
      if (sc < 0 || sc > 63 || mn < 0 || mn > 63) continue;
      const float error = affine_error(x + 32 * s, w + 32 * s, d * sc, dmin * mn, levels);
      if (error >= best) continue;
      best = error;
      out.scale[s] = uint8_t(sc);
      out.min[s] = uint8_t(mn);
    }
    out.error += best;
    const float inverse = inverse_of(d * float(out.scale[s])), m = dmin * float(out.min[s]);
    for (uint32_t i = 32 * s; i < 32 * s + 32; ++i) out.q[i] = uint8_t(clamp(nearest((x[i] + m) * inverse), 0, levels));
  }
}

// The best d and dmin for the integer scales, mins and codes at hand: a = scale * q, b = min, x ~ d a - dmin b.
void refit_affine(const float* x, const float* w, const Affine256& in, float& d, float& dmin) {
  float aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
  for (uint32_t s = 0; s < 8; ++s) {
    const float b = float(in.min[s]);
    Lanes lane_w, lane_a, lane_aa, lane_x, lane_xa;
    for (uint32_t i = 32 * s; i < 32 * s + 32; i += 4) {
      for (uint32_t l = 0; l < 4; ++l) {
        const float a = float(in.scale[s]) * float(in.q[i + l]);
        const float wa = w[i + l] * a;
        lane_w.v[l] += w[i + l];
        lane_a.v[l] += wa;
        lane_aa.v[l] += wa * a;
        lane_x.v[l] += w[i + l] * x[i + l];
        lane_xa.v[l] += wa * x[i + l];
      }
    }
    aa += lane_aa.total();
    ab += lane_a.total() * b;
    bb += lane_w.total() * b * b;
    xa += lane_xa.total();
    xb += lane_x.total() * b;
  }
  const float det = aa * bb - ab * ab;
  if (det > 0) {
    d = (xa * bb - xb * ab) / det;
    dmin = (xa * ab - xb * aa) / det;
  } else if (aa > 0) {
    d = xa / aa;
  }
}

Affine256 encode_affine_256(const float* x, float levels) {
  float w[256], scale[8], min[8], largest = 0, largest_min = 0;
  for (uint32_t s = 0; s < 8; ++s) {
    error_weights(x + 32 * s, 32, w + 32 * s);
    const AffineFit fit = fit_affine(x + 32 * s, w + 32 * s, 32, levels, true);
    scale[s] = fit.d;
    min[s] = -fit.o;
    if (scale[s] > largest) largest = scale[s];
    if (min[s] > largest_min) largest_min = min[s];
  }
  Affine256 best = {};
  best.d = float_to_half(largest / 63);
  best.dmin = float_to_half(largest_min / 63);
  choose_affine(x, w, scale, min, levels, best);
  for (int round = 0; round < 2; ++round) {
    float d = half_to_float(best.d), dmin = half_to_float(best.dmin);
    refit_affine(x, w, best, d, dmin);
    if (!(d > 0) || !(dmin >= 0)) break;
    Affine256 next = {};
    next.d = float_to_half(d);
    next.dmin = float_to_half(dmin);
    choose_affine(x, w, scale, min, levels, next);
    if (!(next.error < best.error)) break;
    best = next;
  }
  return best;
}

void pack_scales_k4(const uint8_t* scale, const uint8_t* min, uint8_t* out) {
  for (uint32_t s = 0; s < 4; ++s) {
    out[s] = uint8_t(scale[s] | scale[s + 4] >> 4 << 6);
    out[s + 4] = uint8_t(min[s] | min[s + 4] >> 4 << 6);
    out[s + 8] = uint8_t((scale[s + 4] & 15) | (min[s + 4] & 15) << 4);
  }
}

// Low nibbles of 256 codes: elements 64 p + l and 64 p + 32 + l share byte 32 p + l.
void pack_nibbles_256(const uint8_t* q, uint8_t* qs) {
  for (uint32_t p = 0; p < 4; ++p)
    for (uint32_t l = 0; l < 32; ++l) qs[32 * p + l] = uint8_t((q[64 * p + l] & 15) | (q[64 * p + 32 + l] & 15) << 4);
}

void encode(const float* x, BlockQ4_K& out) {
  const Affine256 fit = encode_affine_256(x, 15);
  out.d = fit.d;
  out.dmin = fit.dmin;
  pack_scales_k4(fit.scale, fit.min, out.scales);
  pack_nibbles_256(fit.q, out.qs);
}

void encode(const float* x, BlockQ5_K& out) {
  const Affine256 fit = encode_affine_256(x, 31);
  out.d = fit.d;
  out.dmin = fit.dmin;
  pack_scales_k4(fit.scale, fit.min, out.scales);
  pack_nibbles_256(fit.q, out.qs);
  memset(out.qh, 0, sizeof out.qh);
  for (uint32_t i = 0; i < 256; ++i) out.qh[i & 31] |= uint8_t((fit.q[i] >> 4) << (i >> 5));
}

// --- Q6_K: an int8 scale per 16 elements --------------------------------------------------------------------------------

struct Symmetric256 {
  half d;
  int8_t scale[16];
  int8_t q[256];
  float error;
};

float symmetric_error(const float* x, const float* w, float d) {
  const float inverse = inverse_of(d);
  Lanes error;
  for (uint32_t i = 0; i < 16; i += 4) {
    for (uint32_t l = 0; l < 4; ++l) {
      const float miss = x[i + l] - d * clamp(nearest(x[i + l] * inverse), -32, 31);
      error.v[l] += w[i + l] * miss * miss;
    }
  }
  return error.total();
}

void choose_symmetric(const float* x, const float* w, const float* scale, Symmetric256& out) {
  const float d = half_to_float(out.d);
  out.error = 0;
  for (uint32_t s = 0; s < 16; ++s) {
    const float base = nearest(clamp(scale[s] * inverse_of(d), -128, 127));
    float best = 3.0e38f;
    for (int step = -1; step <= 1; ++step) {
      const float sc = base + float(step);
      if (sc < -128 || sc > 127) continue;
      const float error = symmetric_error(x + 16 * s, w + 16 * s, d * sc);
      if (error >= best) continue;
      best = error;
      out.scale[s] = int8_t(sc);
    }
    out.error += best;
    const float inverse = inverse_of(d * float(out.scale[s]));
    for (uint32_t i = 16 * s; i < 16 * s + 16; ++i) out.q[i] = int8_t(clamp(nearest(x[i] * inverse), -32, 31));
  }
}

float refit_symmetric(const float* x, const float* w, const Symmetric256& in) {
  Lanes aa, xa;
  for (uint32_t i = 0; i < 256; i += 4) {
    for (uint32_t l = 0; l < 4; ++l) {
      const float a = float(in.scale[i >> 4]) * float(in.q[i + l]);
      aa.v[l] += w[i + l] * a * a;
      xa.v[l] += w[i + l] * a * x[i + l];
    }
  }
  return aa.total() > 0 ? xa.total() / aa.total() : 0;
}

void encode(const float* x, BlockQ6_K& out) {
  float w[256], scale[16];
  for (uint32_t s = 0; s < 16; ++s) {
    error_weights(x + 16 * s, 16, w + 16 * s);
    scale[s] = fit_symmetric(x + 16 * s, w + 16 * s, 16, 32);
  }
  Symmetric256 best = {};
  best.d = float_to_half(signed_max(scale, 16) / -128);
  choose_symmetric(x, w, scale, best);
  Symmetric256 next = {};
  next.d = float_to_half(refit_symmetric(x, w, best));
  choose_symmetric(x, w, scale, next);
  if (next.error < best.error) best = next;

  out.d = best.d;
  memcpy(out.scales, best.scale, 16);
  memset(out.qh, 0, sizeof out.qh);
  for (uint32_t i = 0; i < 256; ++i) {
    const uint32_t n = i >> 7, j = i >> 5 & 3, l = i & 31;
    const uint32_t code = uint32_t(best.q[i] + 32);
    uint8_t& low = out.ql[64 * n + 32 * (j & 1) + l];
    low = uint8_t(j < 2 ? code & 15 : low | (code & 15) << 4);
    out.qh[32 * n + l] |= uint8_t(code >> 4 << 2 * j);
  }
}

template <typename Block>
void encode_blocks(const float* x, uint32_t cols, uint32_t elements, uint8_t* out) {
  for (uint32_t i = 0; i < cols; i += elements, out += sizeof(Block)) {
    Block block;
    encode(x + i, block);
    memcpy(out, &block, sizeof block);
  }
}

}  // namespace

bool can_encode(DType type) {
  switch (type) {
    case DType::F32:
    case DType::F16:
    case DType::BF16:
    case DType::Q8_0:
    case DType::Q4_0:
    case DType::Q5_0:
    case DType::Q5_1:
    case DType::Q4_K:
    case DType::Q5_K:
    case DType::Q6_K:
      return true;
    default:
      return false;
  }
}

void encode_row(DType type, const float* x, uint32_t cols, uint8_t* out) {
  switch (type) {
    case DType::F32:
      memcpy(out, x, size_t(cols) * 4);
      return;
    case DType::F16:
      for (uint32_t i = 0; i < cols; ++i) {
        const uint16_t h = float_to_half(x[i]);
        memcpy(out + 2 * i, &h, 2);
      }
      return;
    case DType::BF16:
      for (uint32_t i = 0; i < cols; ++i) {
        const uint16_t h = float_to_bf16(x[i]);
        memcpy(out + 2 * i, &h, 2);
      }
      return;
    case DType::Q8_0:
      return encode_blocks<BlockQ8_0>(x, cols, 32, out);
    case DType::Q4_0:
      return encode_blocks<BlockQ4_0>(x, cols, 32, out);
    case DType::Q5_0:
      return encode_blocks<BlockQ5_0>(x, cols, 32, out);
    case DType::Q5_1:
      return encode_blocks<BlockQ5_1>(x, cols, 32, out);
    case DType::Q4_K:
      return encode_blocks<BlockQ4_K>(x, cols, 256, out);
    case DType::Q5_K:
      return encode_blocks<BlockQ5_K>(x, cols, 256, out);
    case DType::Q6_K:
      return encode_blocks<BlockQ6_K>(x, cols, 256, out);
    default:
      return;
  }
}

}  // namespace perigee
