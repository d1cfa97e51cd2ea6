// The forward pass.
#include "door.h"
#include "layers.h"
#include "rope.h"

namespace perigee {

void meet(Engine& e) {
  barrier_wait(e.barrier, e.limits.ranks, e.limits.spins);
  stage_done(Stage::Wait);
}

Range own_rows(const Engine& e, const Rank& rank, uint32_t n) {
  return e.deals_tokens() ? rank_range(n, rank.index, e.limits.ranks, 1) : Range{0, n};
}

void open_shared(Engine& e, Rank& rank) { rank.batch.reset(e.deals_tokens() ? e.shared_input : rank.batch.own_input); }

void meet_if_dealt(Engine& e, Stage stage) {
  if (!e.deals_tokens()) return;
  stage_done(stage);
  meet(e);
}

void run_shared(Engine& e, Rank& rank, Stage stage) {
  meet_if_dealt(e, stage);
  rank.batch.run();
}

void norm_tokens(Engine& e, Rank& rank, const float* weight) {
  const uint32_t hidden = e.config.hidden;
  const Range own = own_rows(e, rank, e.step.tokens_count);
  for (uint32_t t = own.begin; t < own.end; t++) {
    const size_t row = static_cast<size_t>(t) * hidden;
    e.kernels->rms_norm(e.x + row, weight, e.config.rms_eps, hidden, rank.h + row);
  }
}

void add_to_residual(Engine& e, const Rank& rank, const float* delta) {
  const uint32_t width = rank.hidden_rows.size();
  for (uint32_t t = 0; t < e.step.tokens_count; t++) {
    float* x = e.x + static_cast<size_t>(t) * e.config.hidden + rank.hidden_rows.begin;
    e.kernels->axpy(1.0f, delta + static_cast<size_t>(t) * width, width, x);
  }
}

namespace {

// cos and sin of every ranks-th token's position; read after the next barrier.
void rotate_positions(Engine& e, uint32_t r) {
  const uint32_t pairs = e.config.rope_dim / 2;
  for (uint32_t t = r; t < e.step.tokens_count; t += e.limits.ranks) {
    rope_table(e.frequencies, pairs, static_cast<uint32_t>(e.step.positions[t]), e.config.rope_magnitude,
               e.rope + static_cast<size_t>(t) * e.config.rope_dim);
  }
}

}  // namespace

void engine_forward(Engine& e, uint32_t r) {
  Rank& rank = e.ranks[r];
  if (e.limits.experts_only) return serve_experts(e, rank);
  rotate_positions(e, r);
  embed(e, rank);
  meet(e);
  tap_residual(e, rank, Tap::Embedding, 0);
  for (uint32_t layer = 0; layer < e.config.layers; layer++) {
    attend(e, rank, layer);
    if (layer < e.config.dense_layers) {
      dense_ffn(e, rank, layer);
    } else {
      moe_ffn(e, rank, layer);
    }
    tap_residual(e, rank, Tap::Residual, layer);
  }
  head(e, rank);
  meet(e);
}

}  // namespace perigee
