// The engine's data: everything lies in one arena that all ranks share. Shapes are in the comments; T is the number of
// tokens in the step, S = T * experts_used the expert slots.
#pragma once
#include "barrier.h"
#include "engine.h"
#include "exchange.h"
#include "kernels/kernels.h"
#include "shard_batch.h"
#include "taps.h"

namespace perigee {

// One rank's rows of a matrix, or of `count` equal matrices (experts, heads).
struct Weight {
  Location* at;  // [count]; null: the model has no such matrix
  DType type;
  uint32_t row_begin, rows, cols, count;
};

struct LayerVectors {
  float* attn_norm;    // [hidden]
  float* ffn_norm;     // [hidden]
  float* q_a_norm;     // [q_rank]
  float* kv_a_norm;    // [kv_rank]
  float* router_bias;  // [experts]; zeros when the model has none
};

// What one rank needs for itself.
struct Rank {
  uint32_t index;
  Weight* weights;  // [layers][Slot::Count]; the global slots lie in layer 0
  Range heads, hidden_rows;
  ShardBatch batch;
  float* h;               // [T][max(hidden, q_rank)] normed activations
  float* q;               // [heads][T][query_dim]
  float* q_absorbed;      // [T][heads][latent_dim]
  float* o_latent;        // [T][heads][kv_rank]
  float* scores;          // [max(kScoreFloats, heads * context)]
  int32_t* lengths;       // [T * heads] positions each query row sees
  int32_t* chosen;        // [T][experts_used]
  float* gate;            // [T][experts_used] weights of the chosen experts
  int32_t* order;         // [S] slots sorted by expert: order[i] = token * experts_used + k
  int32_t* slot_of;       // [S] where slot (token, k) went: order[slot_of[s]] == s
  int32_t* expert_begin;  // [experts + 1] first sorted slot of each expert
  float* keys;            // [experts] one token's selection keys
  float* probabilities;   // [experts] one token's softmax
  int32_t* token_of;      // [S] token of each sorted slot
  float** product_of;     // [S] where each sorted slot's down product lies

  // Blocks of its heads' attention that some rank has taken; on a line of its own, as others write it.
  alignas(64) uint32_t attended;
};

constexpr uint32_t kDealtTokens = 8;  // a token's share of a layer takes some 5 us, the further barriers 10 to 50

struct Engine {
  ModelConfig config;
  Limits limits;
  const Kernels* kernels;
  Barrier barrier;
  StepBlock step;
  float softmax_scale;
  uint8_t* shared_input;  // as large as a ShardBatch's own: activation rows that the ranks put together

  float* frequencies;    // [rope_dim / 2]
  float* rope;           // [T][rope_dim / 2][2] cos, sin of each token's position
  float* x;              // [T][hidden] the residual; each rank adds to its own columns
  float* qkv;            // [T][q_rank + latent_dim]: query latent (absent without q_rank), then key-value latent
  float* attention;      // [T][heads * value_dim]
  float* router_scores;  // [T][experts]
  float* mid;         // [T][max(shared_width, dense_width)] silu(gate) * up of the shared expert, or of the dense FFN
  float* expert_mid;  // [S][expert_width] the same of the routed experts, slots in sorted order
  float* pages;       // [layers][pages][page_tokens][latent_dim]
  const float** page_pointers;  // [ranks][table_stride] one sequence's pages, rank by rank
  float* output_norm;           // [hidden]
  LayerVectors* vectors;        // [layers]
  Rank* ranks;                  // [ranks]
  Location* locations;          // [locations_capacity], the first locations_used taken by engine_bind
  size_t locations_used, locations_capacity;
  Taps taps;
  Exchange* exchange;  // null for a whole model

  // With few tokens every rank does the work per token (norms, quantizing, routing) for itself: cheaper than a barrier.
  // With more the ranks deal it out, and meet before they multiply.
  bool deals_tokens() const { return limits.ranks > 1 && step.tokens_count >= kDealtTokens; }

  const Weight& weight(const Rank& rank, uint32_t layer, Slot slot) const {
    return rank.weights[layer * static_cast<uint32_t>(Slot::Count) + static_cast<uint32_t>(slot)];
  }
  float* page(uint32_t layer, int32_t index) const {
    return pages + (static_cast<size_t>(layer) * limits.pages + index) * limits.page_tokens * config.latent_dim();
  }
  uint32_t qkv_width() const { return config.q_rank + config.latent_dim(); }
};

constexpr size_t kScoreFloats = 1u << 18;  // 1 MiB of scores per rank: 128 query rows at 2,048 positions

}  // namespace perigee
