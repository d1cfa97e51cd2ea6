// The model's shape and the engine's limits: plain structs of 4-byte fields, written field by field from TypeScript
// (src/runtime/layout.ts mirrors the order; a test compares the two).
#pragma once
#include <stdint.h>

namespace perigee {

// Sanity bounds, checked by engine_create so that no size below can overflow.
constexpr uint32_t kMaxRanks = 256;
constexpr uint32_t kMaxExpertsUsed = 64;

enum class Gating : uint32_t { Softmax = 0, Sigmoid = 1 };

struct ModelConfig {
  uint32_t layers, dense_layers, hidden, vocabulary;
  uint32_t heads, q_rank;  // q_rank 0: a plain query projection
  uint32_t kv_rank, nope_dim, rope_dim, value_dim;
  uint32_t dense_width, experts, experts_used, expert_width, shared_width;
  uint32_t groups, groups_used;  // 1, 1: no group limit
  Gating gating;
  uint32_t normalize_weights;
  float weight_scale, rms_eps, rope_base;
  uint32_t yarn;  // 0: plain rope, the five fields below unused
  float yarn_factor, yarn_original_context, yarn_beta_fast, yarn_beta_slow;
  float rope_magnitude;    // cos and sin are multiplied by this (1 for the whole family today)
  float attention_factor;  // m; the softmax scale is m^2 / sqrt(nope_dim + rope_dim)

  uint32_t query_dim() const { return nope_dim + rope_dim; }
  uint32_t latent_dim() const { return kv_rank + rope_dim; }  // one KV row: normed latent, roped key
};

struct Limits {
  uint32_t ranks;
  uint32_t batch_tokens, batch_outputs, batch_sequences;
  uint32_t pages, page_tokens,
      context;            // KV pages in the pool; positions a page holds; positions one sequence may have
  uint32_t exact;         // 1: float activations everywhere; 2: the same rounded to bf16, to compare a GPU with
  uint32_t spins;         // how often a barrier looks before it sleeps
  uint32_t taps;          // 1: keep the activations between stages of the last step (taps.h)
  uint32_t experts_only;  // 1: no model, only routed experts for a device that runs the rest (exchange.h)
};

// Matrices, split over ranks by rows or heads. Per-layer unless noted.
enum class Slot : uint32_t {
  TokenEmbd,
  Output,  // global
  AttnQ,
  AttnQA,
  AttnQB,
  AttnKVA,
  AttnKB,
  AttnVB,
  AttnOutput,
  FfnGate,
  FfnUp,
  FfnDown,  // dense layers
  Router,
  ExpertGate,
  ExpertUp,
  ExpertDown,
  SharedGate,
  SharedUp,
  SharedDown,
  Count,
};

// Float vectors, held once in the state memory. Per-layer unless noted.
enum class Vector : uint32_t { OutputNorm /* global */, AttnNorm, FfnNorm, QANorm, KVANorm, RouterBias, Count };

}  // namespace perigee
