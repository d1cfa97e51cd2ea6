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
