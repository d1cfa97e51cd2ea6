// Scale searches for the encoders: the grid d * q (+ o) that comes nearest to a block of floats.
//
// The error is a weighted sum of squares. For codes q held fixed the best d (and o) follow from a linear system; which codes
// are best depends on d again. So a few starting grids are tried, each solved for its own codes, and the best one is
// polished by solving and rounding in turn until nothing moves.
#pragma once
#include <stdint.h>

namespace perigee {

// Sums run in four lanes, element i in lane i mod 4, so that they have one order and SIMD can carry it out.
struct Lanes {
  float v[4] = {0, 0, 0, 0};
  float total() const { return (v[0] + v[2]) + (v[1] + v[3]); }
};

// Nearest integer, ties to even, for |v| < 2^22: the addition pushes the fraction out of the float.
inline float nearest(float v) { return (v + 12582912.0f) - 12582912.0f; }

inline float clamp(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }

// How much each element's error counts: large weights a little more, since they move the output more when they are wrong.
inline void error_weights(const float* x, uint32_t n, float* w) {
  Lanes squares;
  for (uint32_t i = 0; i < n; i += 4)
    for (uint32_t l = 0; l < 4; ++l) squares.v[l] += x[i + l] * x[i + l];
  const float rms = __builtin_sqrtf(squares.total() / float(n));
  for (uint32_t i = 0; i < n; ++i) w[i] = rms + __builtin_fabsf(x[i]);
}

// The largest magnitude of x, with its sign. By way of the extremes: LLVM 19 miscompiles the unrolled form of
// `if (fabs(x[i]) > fabs(best)) best = x[i]` (it drops the second fabs after the first element).
inline float signed_max(const float* x, uint32_t n) {
  float lowest = 0, highest = 0;
  for (uint32_t i = 0; i < n; ++i) {
    lowest = x[i] < lowest ? x[i] : lowest;
    highest = x[i] > highest ? x[i] : highest;
  }
  return -lowest > highest ? lowest : highest;
}

// x ~ d * q with q in [-half_range, half_range - 1].
struct SymmetricFit {
  float d = 0;
  float gain = 0;  // what the grid explains of sum w x^2
};

// Codes of the grid 1 / inverse, then the best d for those codes.
inline SymmetricFit solve_symmetric(const float* x, const float* w, uint32_t n, float half_range, float inverse) {
  Lanes xq, qq;
  for (uint32_t i = 0; i < n; i += 4) {
    for (uint32_t l = 0; l < 4; ++l) {
      const float q = clamp(nearest(x[i + l] * inverse), -half_range, half_range - 1);
      const float wq = w[i + l] * q;
      xq.v[l] += wq * x[i + l];
      qq.v[l] += wq * q;
    }
  }
  const float a = xq.total(), b = qq.total();
  return b > 0 ? SymmetricFit{a / b, a * a / b} : SymmetricFit{};
}

// The best scale for n elements (a multiple of 4). Zero when all elements are (nearly) zero.
inline float fit_symmetric(const float* x, const float* w, uint32_t n, float half_range) {
  const float largest = signed_max(x, n);
  if (__builtin_fabsf(largest) < 1e-30f) return 0;
  SymmetricFit best;
  // The largest element may land on -half_range, on its positive neighbour, or be cut a little by either.
  for (int step = -4; step <= 4; ++step) {
    const SymmetricFit fit = solve_symmetric(x, w, n, half_range, -(half_range + 0.25f * float(step)) / largest);
    if (fit.gain > best.gain) best = fit;
  }
  for (int polish = 0; polish < 4 && best.d != 0; ++polish) {
    const SymmetricFit fit = solve_symmetric(x, w, n, half_range, 1 / best.d);
    if (!(fit.gain > best.gain)) break;
    best = fit;
  }
  return best.d;
}

// x ~ d * q + o with q in [0, levels]; with `down` o is at most 0.
struct AffineFit {
  float d = 0, o = 0;
  float error = 0;
};

struct AffineSums {
  float w, x, xx;  // sum of weights, of w x, of w x^2
};

// Codes of the grid (inverse, o), then the best d and o for those codes.
inline AffineFit solve_affine(const float* x, const float* w, uint32_t n, float levels, bool down, float inverse,
                              float o, const AffineSums& sums) {
  Lanes lane_q, lane_qq, lane_qx;
  for (uint32_t i = 0; i < n; i += 4) {
    for (uint32_t l = 0; l < 4; ++l) {
      const float q = clamp(nearest((x[i + l] - o) * inverse), 0, levels);
      const float wq = w[i + l] * q;
      lane_q.v[l] += wq;
      lane_qq.v[l] += wq * q;
      lane_qx.v[l] += wq * x[i + l];
    }
  }
  const float q = lane_q.total(), qq = lane_qq.total(), qx = lane_qx.total();
  const float det = sums.w * qq - q * q;
  AffineFit fit;
  if (det > 0) {
    fit.d = (sums.w * qx - q * sums.x) / det;
    fit.o = (qq * sums.x - q * qx) / det;
  }
  if (!(det > 0) || (down && fit.o > 0)) {
    fit.o = 0;
    fit.d = qq > 0 ? qx / qq : 0;
  }
  fit.error = sums.xx + fit.d * (fit.d * qq - 2 * qx) + fit.o * (fit.o * sums.w - 2 * sums.x) + 2 * fit.d * fit.o * q;
  return fit;
}

// The best scale (not negative) and offset for n elements, a multiple of 4.
inline AffineFit fit_affine(const float* x, const float* w, uint32_t n, float levels, bool down) {
  float lowest = down ? 0 : x[0], highest = x[0];
  Lanes lane_w, lane_x, lane_xx;
  for (uint32_t i = 0; i < n; ++i) {
    if (x[i] < lowest) lowest = x[i];
    if (x[i] > highest) highest = x[i];
    lane_w.v[i & 3] += w[i];
    lane_x.v[i & 3] += w[i] * x[i];
    lane_xx.v[i & 3] += w[i] * x[i] * x[i];
  }
  const AffineSums sums = {lane_w.total(), lane_x.total(), lane_xx.total()};
  AffineFit best = {0, lowest, 0};
  if (!(highest - lowest > 1e-30f)) return best;
  best.error = 3.0e38f;
  for (int step = -4; step <= 4; ++step) {
    const float inverse = (levels + 0.25f * float(step)) / (highest - lowest);
    const AffineFit fit = solve_affine(x, w, n, levels, down, inverse, lowest, sums);
    if (fit.d > 0 && fit.error < best.error) best = fit;
  }
  for (int polish = 0; polish < 4 && best.d > 0; ++polish) {
    const AffineFit fit = solve_affine(x, w, n, levels, down, 1 / best.d, best.o, sums);
    if (!(fit.d > 0 && fit.error < best.error)) break;
    best = fit;
  }
  return best;
}

}  // namespace perigee
