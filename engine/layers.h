// The stages of one layer, each one rank's share. Barriers stand where results of all ranks are needed next.
#pragma once
#include "door.h"
#include "state.h"

namespace perigee {

// Token rows of the embedding into x; the rank that owns a vocabulary row writes it.
void embed(Engine& e, Rank& rank);

// x += attention of the layer, absorbed multi-head latent attention (mla.cc).
void attend(Engine& e, Rank& rank, uint32_t layer);

// x += the dense feed-forward of the layer (ffn.cc).
void dense_ffn(Engine& e, Rank& rank, uint32_t layer);

// x += routed experts + shared expert (ffn.cc).
void moe_ffn(Engine& e, Rank& rank, uint32_t layer);

// Routed experts in parts, for moe_ffn and for serve_experts (exchange.h).

// Activation rows of h[T][hidden] for the products with gate and up, as offsets in the open batch.
struct ExpertInput {
  uint32_t gate, up;
};
ExpertInput put_expert_input(Engine& e, Rank& rank, uint32_t layer, const float* h);

// expert_mid[slot] = silu(gate) * up of each token with each of its experts, own columns. A weight block is read once for
// all tokens of its expert. Runs the open batch.
void experts_in(Engine& e, Rank& rank, uint32_t layer, ExpertInput x, const int32_t* chosen);

// Adds down . expert_mid of all slots to the open batch, own rows.
void add_expert_downs(Engine& e, Rank& rank, uint32_t layer);

// row[own hidden rows] = sum over k of weight[t][k] * its product, in the order chosen, once the batch has run.
void sum_experts(Engine& e, Rank& rank, uint32_t layer, uint32_t t, const float* weight, float* row);

// Logits of the wanted tokens, this rank's vocabulary rows (head.cc).
void head(Engine& e, Rank& rank);

// Waits for all ranks; the time spent counts as Stage::Wait.
void meet(Engine& e);

// Of `n` rows (tokens, expert slots) those whose work per row is this rank's: all, or its share of a large step's.
Range own_rows(const Engine& e, const Rank& rank, uint32_t n);

// Begins a stretch whose activation rows are the same for all ranks; put only own_rows.
void open_shared(Engine& e, Rank& rank);

// Waits until the work that was dealt out is done by all; the time until here counts for `stage`.
void meet_if_dealt(Engine& e, Stage stage);

// Runs its products once every rank has put its rows; the time until here counts for `stage`.
void run_shared(Engine& e, Rank& rank, Stage stage);

// h[t] = RMSNorm(x[t]) of the own rows of the step's tokens: h is [T][hidden], the rank's own.
void norm_tokens(Engine& e, Rank& rank, const float* weight);

// x[t][own hidden rows] += delta[t][own hidden rows]; the rank's own columns of the residual.
void add_to_residual(Engine& e, const Rank& rank, const float* delta);

}  // namespace perigee
