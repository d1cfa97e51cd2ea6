// The stages of one layer, each one rank's share. Barriers stand where results of all ranks are needed next.
#pragma once
#include "state.h"

namespace perigee {

// Token rows of the embedding into x; the rank that owns a vocabulary row writes it.
void embed(Engine& e, Rank& rank);

// x += attention of the layer, absorbed multi-head latent attention (mla.cc).
void attend(Engine& e, Rank& rank, uint32_t r, uint32_t layer);

// x += the dense feed-forward of the layer (ffn.cc).
void dense_ffn(Engine& e, Rank& rank, uint32_t layer);

// x += routed experts + shared expert (ffn.cc).
void moe_ffn(Engine& e, Rank& rank, uint32_t layer);

// Logits of the wanted tokens, this rank's vocabulary rows (head.cc).
void head(Engine& e, Rank& rank);

// Waits for all ranks; the time spent counts as Stage::Wait.
void meet(Engine& e);

// h[t] = RMSNorm(x[t]) of every token of the step: h is [T][hidden], the rank's own.
void norm_tokens(Engine& e, Rank& rank, const float* weight);

// x[t][own hidden rows] += delta[t][own hidden rows]; the rank's own columns of the residual.
void add_to_residual(Engine& e, const Rank& rank, const float* delta);

}  // namespace perigee
