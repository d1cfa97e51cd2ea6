#include "rope.h"
#include "math.h"

namespace perigee {

namespace {

constexpr double kPi = 3.14159265358979323846;

// The (fractional) pair index whose wave turns `turns` times within the original context.
double pair_of_turns(double turns, double rope_dim, double base, double original_context) {
  return rope_dim * log_double(original_context / (2.0 * kPi * turns)) / (2.0 * log_double(base));
}

}  // namespace

void rope_frequencies(const ModelConfig& config, float* out) {
  const double dim = config.rope_dim, base = config.rope_base;
  double low = 0, high = 0;
  if (config.yarn) {
    low = __builtin_floor(pair_of_turns(config.yarn_beta_fast, dim, base, config.yarn_original_context));
    high = __builtin_ceil(pair_of_turns(config.yarn_beta_slow, dim, base, config.yarn_original_context));
    if (low < 0) low = 0;
    if (high > dim - 1) high = dim - 1;
    if (low == high) high += 0.001;  // the ramp must not divide by zero
  }
  for (uint32_t i = 0; i < config.rope_dim / 2; i++) {
    const double plain = exp_double(-2.0 * i / dim * log_double(base));
    double ramp = 0;  // share of the interpolated frequency
    if (config.yarn) {
      ramp = (i - low) / (high - low);
      ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    }
    const double factor = config.yarn ? static_cast<double>(config.yarn_factor) : 1.0;
    out[i] = static_cast<float>(plain / factor * ramp + plain * (1 - ramp));
  }
}

void rope_table(const float* frequencies, uint32_t pairs, uint32_t position, float magnitude, float* out) {
  for (uint32_t i = 0; i < pairs; i++) {
    const float angle = static_cast<float>(position) * frequencies[i];
    const SinCos turned = sin_cos_double(angle);
    out[2 * i] = static_cast<float>(turned.cos) * magnitude;
    out[2 * i + 1] = static_cast<float>(turned.sin) * magnitude;
  }
}

void rope_rotate(float* x, const float* table, uint32_t pairs) {
  for (uint32_t i = 0; i < pairs; i++) {
    const float cosine = table[2 * i], sine = table[2 * i + 1];
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cosine - b * sine;
    x[2 * i + 1] = a * sine + b * cosine;
  }
}

}  // namespace perigee
