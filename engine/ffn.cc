// The feed-forward half of a layer: one dense SwiGLU, or routed experts beside a shared one.
#include "door.h"
#include "layers.h"
#include "router.h"

namespace perigee {

namespace {

// mid[row of `to`] = silu(gate) * up, own columns; `n` rows of the products at y_gate and y_up.
void write_mid(const Engine& e, ShardBatch& batch, const Weight& gate, size_t y_gate, size_t y_up, uint32_t n,
               float* to, uint32_t width) {
  float* products = batch.result(y_gate);
  e.kernels->silu_mul(products, batch.result(y_up), n * gate.rows);
  for (uint32_t i = 0; i < n; i++) {
    __builtin_memcpy(to + static_cast<size_t>(i) * width + gate.row_begin,
                     products + static_cast<size_t>(i) * gate.rows, gate.rows * sizeof(float));
  }
}

// Activation rows of h, stored once per activation kind.
struct PutOnce {
  ShardBatch& batch;
  const float* x;
  uint32_t n, cols;
  Range rows;
  uint32_t offsets[3] = {kAllRows, kAllRows, kAllRows};

  uint32_t operator()(DType type) {
    uint32_t& offset = offsets[static_cast<uint32_t>(activation_for(type, batch.exact))];
    if (offset == kAllRows) offset = batch.put(type, x, n, cols, cols, rows);
    return offset;
  }
};

// scores[t] = sigmoid(W_router h), own experts (softmax needs all of them and waits); in the same stretch the shared
// expert's gate and up, so that nobody idles at the barrier.
void score_and_share(Engine& e, Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const uint32_t n = e.step.tokens_count;
  const Weight& router = e.weight(rank, layer, Slot::Router);
  const Weight& gate = e.weight(rank, layer, Slot::SharedGate);
  const Weight& up = e.weight(rank, layer, Slot::SharedUp);
  ShardBatch& batch = rank.batch;
  open_shared(e, rank);
  PutOnce h{batch, rank.h, n, c.hidden, own_rows(e, rank, n)};
  // The router's weights are float in every file, so its activations are float too.
  const size_t y = batch.multiply(router, 0, h(router.type), kAllRows, n);
  size_t y_gate = 0, y_up = 0;
  if (c.shared_width) {
    y_gate = batch.multiply(gate, 0, h(gate.type), kAllRows, n);
    y_up = batch.multiply(up, 0, h(up.type), kAllRows, n);
  }
  run_shared(e, rank, Stage::Router);
  float* logits = batch.result(y);
  if (c.gating == Gating::Sigmoid) e.kernels->sigmoid(logits, n * router.rows);
  for (uint32_t t = 0; t < n; t++) {
    __builtin_memcpy(e.router_scores + static_cast<size_t>(t) * c.experts + router.row_begin,
                     logits + static_cast<size_t>(t) * router.rows, router.rows * sizeof(float));
  }
  if (c.shared_width) write_mid(e, batch, gate, y_gate, y_up, n, e.mid, c.shared_width);
  tap_columns(e, Tap::RouterScores, layer, logits, router.rows, {router.row_begin, router.row_begin + router.rows});
  stage_done(Stage::Router);
}

// Where the chosen experts of the step's tokens lie: with the rank, or with the first one where the ranks deal tokens out.
Rank& chooser(Engine& e, Rank& rank) { return e.deals_tokens() ? e.ranks[0] : rank; }

// Chooses experts and their weights for the own rows of the tokens.
void route(Engine& e, Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const Rank& to = chooser(e, rank);
  const Range own = own_rows(e, rank, e.step.tokens_count);
  for (uint32_t t = own.begin; t < own.end; t++) {
    const float* scores = e.router_scores + static_cast<size_t>(t) * c.experts;
    if (c.gating == Gating::Softmax) {
      __builtin_memcpy(rank.probabilities, scores, c.experts * sizeof(float));
      e.kernels->softmax(rank.probabilities, c.experts);
      scores = rank.probabilities;
    }
    choose_experts(c, scores, e.vectors[layer].router_bias, rank.keys, to.chosen + t * c.experts_used,
                   to.gate + t * c.experts_used);
    if (&to == e.ranks) tap_row(e, Tap::RouterChoices, layer, t, to.chosen + t * c.experts_used);
  }
}

// x[t] += routed experts, then the shared expert; own rows.
void experts_out(Engine& e, Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const uint32_t n = e.step.tokens_count, width = rank.hidden_rows.size();
  const Weight& shared = e.weight(rank, layer, Slot::SharedDown);
  ShardBatch& batch = rank.batch;
  open_shared(e, rank);
  add_expert_downs(e, rank, layer);
  size_t y_shared = 0;
  if (c.shared_width) {
    const uint32_t mid = batch.put(shared.type, e.mid, n, c.shared_width, c.shared_width, own_rows(e, rank, n));
    y_shared = batch.multiply(shared, 0, mid, kAllRows, n);
  }
  run_shared(e, rank, Stage::ExpertsOut);
  float* sum = rank.h;  // no longer needed; [T][own hidden rows]
  for (uint32_t t = 0; t < n; t++) {
    float* row = sum + static_cast<size_t>(t) * width;
    sum_experts(e, rank, layer, t, chooser(e, rank).gate, row);
    if (c.shared_width) e.kernels->axpy(1.0f, batch.result(y_shared + static_cast<size_t>(t) * width), width, row);
  }
  tap_columns(e, Tap::FeedForward, layer, sum, width, rank.hidden_rows);
  add_to_residual(e, rank, sum);
  stage_done(Stage::ExpertsOut);
}

}  // namespace

void dense_ffn(Engine& e, Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const uint32_t n = e.step.tokens_count;
  const Weight& gate = e.weight(rank, layer, Slot::FfnGate);
  const Weight& up = e.weight(rank, layer, Slot::FfnUp);
  const Weight& down = e.weight(rank, layer, Slot::FfnDown);
  ShardBatch& batch = rank.batch;
  norm_tokens(e, rank, e.vectors[layer].ffn_norm);
  open_shared(e, rank);
  PutOnce h{batch, rank.h, n, c.hidden, own_rows(e, rank, n)};
  const size_t y_gate = batch.multiply(gate, 0, h(gate.type), kAllRows, n);
  const size_t y_up = batch.multiply(up, 0, h(up.type), kAllRows, n);
  run_shared(e, rank, Stage::Dense);
  write_mid(e, batch, gate, y_gate, y_up, n, e.mid, c.dense_width);
  stage_done(Stage::Dense);
  meet(e);
  open_shared(e, rank);
  const uint32_t x = batch.put(down.type, e.mid, n, c.dense_width, c.dense_width, own_rows(e, rank, n));
  const size_t y = batch.multiply(down, 0, x, kAllRows, n);
  run_shared(e, rank, Stage::Dense);
  tap_columns(e, Tap::FeedForward, layer, batch.result(y), down.rows, rank.hidden_rows);
  add_to_residual(e, rank, batch.result(y));
  stage_done(Stage::Dense);
  meet(e);
}

ExpertInput put_expert_input(Engine& e, Rank& rank, uint32_t layer, const float* h) {
  const uint32_t n = e.step.tokens_count;
  PutOnce put{rank.batch, h, n, e.config.hidden, own_rows(e, rank, n)};
  const uint32_t gate = put(e.weight(rank, layer, Slot::ExpertGate).type);
  return {gate, put(e.weight(rank, layer, Slot::ExpertUp).type)};
}

void experts_in(Engine& e, Rank& rank, uint32_t layer, ExpertInput x, const int32_t* chosen) {
  const ModelConfig& c = e.config;
  const Weight& gate = e.weight(rank, layer, Slot::ExpertGate);
  const Weight& up = e.weight(rank, layer, Slot::ExpertUp);
  ShardBatch& batch = rank.batch;
  group_by_expert(chosen, e.step.tokens_count, c.experts_used, c.experts, rank.order, rank.slot_of, rank.expert_begin);
  const auto slots = static_cast<uint32_t>(rank.expert_begin[c.experts]);
  int32_t* token_of = rank.token_of;
  for (uint32_t s = 0; s < slots; s++) token_of[s] = rank.order[s] / static_cast<int32_t>(c.experts_used);
  const uint32_t rows = batch.put_indices(token_of, slots, !e.deals_tokens() || rank.index == 0);
  for (uint32_t expert = 0; expert < c.experts; expert++) {
    const uint32_t begin = rank.expert_begin[expert], count = rank.expert_begin[expert + 1] - begin;
    if (count == 0) continue;
    const uint32_t first = static_cast<uint32_t>(rows + begin * sizeof(int32_t));
    batch.multiply(gate, expert, x.gate, first, count);
    batch.multiply(up, expert, x.up, first, count);
  }
  run_shared(e, rank, Stage::ExpertsIn);
  uint32_t slot = 0;
  for (uint32_t job = 0; job < batch.job_count; job += 2) {
    const uint32_t count = batch.jobs[job].n;
    write_mid(e, batch, gate, batch.jobs[job].y / sizeof(float), batch.jobs[job + 1].y / sizeof(float), count,
              e.expert_mid + static_cast<size_t>(slot) * c.expert_width, c.expert_width);
    slot += count;
  }
  stage_done(Stage::ExpertsIn);
}

void add_expert_downs(Engine& e, Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const Weight& down = e.weight(rank, layer, Slot::ExpertDown);
  const auto slots = static_cast<uint32_t>(rank.expert_begin[c.experts]);
  ShardBatch& batch = rank.batch;
  const uint32_t x =
      batch.put(down.type, e.expert_mid, slots, c.expert_width, c.expert_width, own_rows(e, rank, slots));
  const size_t x_row = activation_row_bytes(activation_for(down.type, batch.exact), c.expert_width);
  for (uint32_t expert = 0; expert < c.experts; expert++) {
    const uint32_t begin = rank.expert_begin[expert], count = rank.expert_begin[expert + 1] - begin;
    if (count == 0) continue;
    const size_t y = batch.multiply(down, expert, static_cast<uint32_t>(x + begin * x_row), kAllRows, count);
    for (uint32_t i = 0; i < count; i++)
      rank.product_of[begin + i] = batch.result(y + static_cast<size_t>(i) * down.rows);
  }
}

void sum_experts(Engine& e, Rank& rank, uint32_t layer, uint32_t t, const float* weight, float* row) {
  const uint32_t width = e.weight(rank, layer, Slot::ExpertDown).rows, used = e.config.experts_used;
  __builtin_memset(row, 0, width * sizeof(float));
  for (uint32_t s = t * used; s < (t + 1) * used; s++) {
    if (rank.slot_of[s] >= 0) e.kernels->axpy(weight[s], rank.product_of[rank.slot_of[s]], width, row);
  }
}

void moe_ffn(Engine& e, Rank& rank, uint32_t layer) {
  norm_tokens(e, rank, e.vectors[layer].ffn_norm);
  score_and_share(e, rank, layer);
  meet(e);
  open_shared(e, rank);
  const ExpertInput x = put_expert_input(e, rank, layer, rank.h);
  route(e, rank, layer);
  meet_if_dealt(e, Stage::ExpertsIn);
  experts_in(e, rank, layer, x, chooser(e, rank).chosen);
  meet(e);
  experts_out(e, rank, layer);
  meet(e);
}

}  // namespace perigee
