// Taps: copies of the activations between stages, kept for whoever compares two backends (src/conform). Without
// Limits.taps there are no buffers and every call below returns at once.
#pragma once
#include "arena.h"
#include "engine.h"

namespace perigee {

struct Rank;

// Everything is float but RouterChoices, which is int32. src/runtime/taps.ts mirrors the order; a test compares the two.
enum class Tap : uint32_t {
  Embedding,      // [hidden] rows of the embedding table; layer 0 only
  Latent,         // [latent_dim] the KV row appended: normed latent, roped key
  Attention,      // [heads * value_dim] attention before its output projection
  RouterScores,   // [experts] sigmoid of the router's logits, or the logits under softmax; MoE layers only
  RouterChoices,  // [experts_used] experts in the order chosen; MoE layers only
  FeedForward,    // [hidden] routed and shared experts, or the dense network, before it is added to the residual
  Residual,       // [hidden] what the layer leaves
  Count,
};

// Floats (int32 for choices) of one token.
uint32_t tap_width(const ModelConfig& config, Tap tap);
bool tap_exists(const ModelConfig& config, Tap tap, uint32_t layer);

struct Taps {
  float* of[static_cast<uint32_t>(Tap::Count)];  // [layers][batch_tokens][width]; null when off
};

void lay_out_taps(Arena& arena, const ModelConfig& config, const Limits& limits, Taps& taps);

// Copies a rank's own columns: `own` is its first one of token 0, tokens lie `stride` floats apart.
void tap_columns(Engine& e, Tap tap, uint32_t layer, const float* own, size_t stride, Range columns);

// The rank's own columns of the residual x.
void tap_residual(Engine& e, const Rank& rank, Tap tap, uint32_t layer);

// Copies the whole row of token `t`.
void tap_row(Engine& e, Tap tap, uint32_t layer, uint32_t t, const void* row);

}  // namespace perigee
