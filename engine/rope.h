// Rotary position embedding with YaRN. Pairs are interleaved: pair i is dims (2i, 2i+1).
#pragma once
#include "config.h"

namespace perigee {

// Inverse frequencies of the rope pairs: out[rope_dim / 2]. YaRN per the paper as DeepSeek applies it: pairs the original
// context turns often keep theta^(-2i/d), slow ones are divided by the factor, with a linear ramp between.
void rope_frequencies(const ModelConfig& config, float* out);

// cos and sin of position * frequency (angle rounded to float, as the reference does), times the magnitude:
// out[pairs][2].
void rope_table(const float* frequencies, uint32_t pairs, uint32_t position, float magnitude, float* out);

// Rotates x[2 * pairs] in place.
void rope_rotate(float* x, const float* table, uint32_t pairs);

}  // namespace perigee
