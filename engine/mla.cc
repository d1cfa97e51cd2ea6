// Multi-head latent attention in its absorbed form: the cache holds one latent and one rope key per position, shared by all
// heads; k_b folds into the query and v_b unfolds the result. The same form serves prompts and single tokens, so a
// position's bits do not depend on how its prompt was cut into steps.
#include "door.h"
#include "layers.h"
#include "rope.h"

namespace perigee {

namespace {

// DeepSeek's own code and the transformers library build the latent norms with their default eps, whatever the
// checkpoint's rms_norm_eps says; vLLM and llama.cpp take that. They differ where it is 1e-5 (Moonlight, K2-Thinking).
constexpr float kLatentEps = 1e-6f;

// Whether attention keeps all bits of its floats, as in a layer whose weights meet float activations. Elsewhere queries, keys
// and probabilities have 12 (activations have 8): products are exact then, and fused multiply-adds may be used. The last rank
// has a head however many ranks there are.
bool keeps_floats(const Engine& e, uint32_t layer) {
  const Weight& k_b = e.weight(e.ranks[e.limits.ranks - 1], layer, Slot::AttnKB);
  return activation_for(k_b.type, e.limits.exact) == Activation::F32;
}

// qkv[t] = [W_qa h | W_kva h], own rows; without a low-rank query the plain projection of the own heads goes to q.
void project_inputs(Engine& e, Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const uint32_t n = e.step.tokens_count, stride = e.qkv_width();
  const Weight& kv = e.weight(rank, layer, Slot::AttnKVA);
  const Weight& q = e.weight(rank, layer, c.q_rank ? Slot::AttnQA : Slot::AttnQ);
  ShardBatch& batch = rank.batch;
  open_shared(e, rank);
  const Range own = own_rows(e, rank, n);
  const uint32_t x_q = batch.put(q.type, rank.h, n, c.hidden, c.hidden, own);
  const bool same = activation_for(q.type, batch.exact) == activation_for(kv.type, batch.exact);
  const uint32_t x_kv = same ? x_q : batch.put(kv.type, rank.h, n, c.hidden, c.hidden, own);
  const size_t y_q = batch.multiply(q, 0, x_q, kAllRows, n), y_kv = batch.multiply(kv, 0, x_kv, kAllRows, n);
  run_shared(e, rank, Stage::QKV);
  for (uint32_t t = 0; t < n; t++) {
    float* row = e.qkv + static_cast<size_t>(t) * stride;
    const float* from_kv = batch.result(y_kv + static_cast<size_t>(t) * kv.rows);
    __builtin_memcpy(row + c.q_rank + kv.row_begin, from_kv, kv.rows * sizeof(float));
    const float* from_q = batch.result(y_q + static_cast<size_t>(t) * q.rows);
    if (c.q_rank) {
      __builtin_memcpy(row + q.row_begin, from_q, q.rows * sizeof(float));
    } else {
      for (uint32_t i = 0; i < rank.heads.size(); i++) {
        __builtin_memcpy(rank.q + (static_cast<size_t>(i) * n + t) * c.query_dim(), from_q + i * c.query_dim(),
                         c.query_dim() * sizeof(float));
      }
    }
  }
  stage_done(Stage::QKV);
}

// q[head][t] = W_qb norm(query latent), own heads.
void expand_queries(Engine& e, Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const uint32_t n = e.step.tokens_count, width = rank.heads.size() * c.query_dim();
  const Weight& w = e.weight(rank, layer, Slot::AttnQB);
  ShardBatch& batch = rank.batch;
  open_shared(e, rank);
  const Range own = own_rows(e, rank, n);
  float* normed = rank.h;  // no longer needed; [T][q_rank]
  for (uint32_t t = own.begin; t < own.end; t++) {
    e.kernels->rms_norm(e.qkv + static_cast<size_t>(t) * e.qkv_width(), e.vectors[layer].q_a_norm, kLatentEps, c.q_rank,
                        normed + static_cast<size_t>(t) * c.q_rank);
  }
  const size_t y = batch.multiply(w, 0, batch.put(w.type, normed, n, c.q_rank, c.q_rank, own), kAllRows, n);
  run_shared(e, rank, Stage::Query);
  for (uint32_t t = 0; t < n; t++) {
    for (uint32_t i = 0; i < rank.heads.size(); i++) {
      __builtin_memcpy(rank.q + (static_cast<size_t>(i) * n + t) * c.query_dim(),
                       batch.result(y + static_cast<size_t>(t) * width + i * c.query_dim()),
                       c.query_dim() * sizeof(float));
    }
  }
}

// Writes the KV rows of every ranks-th token: normed latent, roped key.
void append_latents(Engine& e, const Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const uint32_t pairs = c.rope_dim / 2;
  for (uint32_t t = rank.index; t < e.step.tokens_count; t += e.limits.ranks) {
    const uint32_t position = static_cast<uint32_t>(e.step.positions[t]);
    const int32_t* table = e.step.page_tables + static_cast<size_t>(e.step.sequences[t]) * e.step.table_stride;
    float* row = e.page(layer, table[position / e.limits.page_tokens]) +
                 static_cast<size_t>(position % e.limits.page_tokens) * c.latent_dim();
    const float* latent = e.qkv + static_cast<size_t>(t) * e.qkv_width() + c.q_rank;
    e.kernels->rms_norm(latent, e.vectors[layer].kv_a_norm, kLatentEps, c.kv_rank, row);
    __builtin_memcpy(row + c.kv_rank, latent + c.kv_rank, c.rope_dim * sizeof(float));
    rope_rotate(row + c.kv_rank, e.rope + static_cast<size_t>(t) * c.rope_dim, pairs);
    if (!keeps_floats(e, layer)) e.kernels->twelve_bits(row, c.latent_dim());
    tap_row(e, Tap::Latent, layer, t, row);
  }
}

// q_absorbed[t][head] = [K_h q_nope | rope(q_rope)].
void absorb_keys(Engine& e, Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const uint32_t n = e.step.tokens_count, heads = rank.heads.size();
  const Weight& k_b = e.weight(rank, layer, Slot::AttnKB);
  ShardBatch& batch = rank.batch;
  batch.reset(batch.own_input);
  for (uint32_t i = 0; i < heads; i++) {
    const float* q = rank.q + static_cast<size_t>(i) * n * c.query_dim();
    batch.multiply(k_b, i, batch.put(k_b.type, q, n, c.nope_dim, c.query_dim(), {0, n}), kAllRows, n);
  }
  batch.run();
  rank.attended = 0;
  for (uint32_t i = 0; i < heads; i++) {
    const float* absorbed = batch.result(batch.jobs[i].y / sizeof(float));
    for (uint32_t t = 0; t < n; t++) {
      float* row = rank.q_absorbed + (static_cast<size_t>(t) * heads + i) * c.latent_dim();
      __builtin_memcpy(row, absorbed + static_cast<size_t>(t) * c.kv_rank, c.kv_rank * sizeof(float));
      __builtin_memcpy(row + c.kv_rank, rank.q + (static_cast<size_t>(i) * n + t) * c.query_dim() + c.nope_dim,
                       c.rope_dim * sizeof(float));
      rope_rotate(row + c.kv_rank, e.rope + static_cast<size_t>(t) * c.rope_dim, c.rope_dim / 2);
      if (!keeps_floats(e, layer)) e.kernels->twelve_bits(row, c.latent_dim());
    }
  }
  stage_done(Stage::Query);
}

// Query rows of a block that a rank takes at a time: keys come from L2, a byte for 60 operations.
constexpr uint32_t kBlockRows = 32;

// o_latent[t][head] = sum over positions of softmax(s q.k) latent, for the heads of rank `of` and tokens from .. to - 1 of the
// step, one group of tokens of one sequence at a time.
void attend_tokens(Engine& e, const Rank& rank, const Rank& of, uint32_t layer, uint32_t from, uint32_t to) {
  const ModelConfig& c = e.config;
  const uint32_t heads = of.heads.size(), page_tokens = e.limits.page_tokens;
  const float** pages = e.page_pointers + static_cast<size_t>(rank.index) * e.step.table_stride;
  for (uint32_t begin = from; begin < to;) {
    const int32_t sequence = e.step.sequences[begin];
    uint32_t end = begin;
    size_t length = 0;
    // As many tokens of the sequence as the score scratch holds; at least one.
    while (end < to && e.step.sequences[end] == sequence) {
      const size_t longer = static_cast<size_t>(e.step.positions[end]) + 1;
      if (end > begin && longer * (end + 1 - begin) * heads > kScoreFloats) break;
      length = longer;
      end++;
    }
    const int32_t* table = e.step.page_tables + static_cast<size_t>(sequence) * e.step.table_stride;
    for (uint32_t p = 0; p * page_tokens < length; p++) pages[p] = e.page(layer, table[p]);
    for (uint32_t t = begin; t < end; t++) {
      for (uint32_t i = 0; i < heads; i++) rank.lengths[(t - begin) * heads + i] = e.step.positions[t] + 1;
    }
    const size_t row = static_cast<size_t>(begin) * heads;
    e.kernels->attention({of.q_absorbed + row * c.latent_dim(), pages, rank.lengths, of.o_latent + row * c.kv_rank,
                          rank.scores, length, e.softmax_scale, (end - begin) * heads, c.latent_dim(), c.kv_rank,
                          page_tokens, keeps_floats(e, layer)});
    begin = end;
  }
}

// Attention of a large step. A rank that has done with its heads goes on with the others': heads seldom divide by ranks, and
// cores run at different speeds. The last tokens, which see most, come first.
void share_attention(Engine& e, Rank& rank, uint32_t layer) {
  const uint32_t n = e.step.tokens_count, ranks = e.limits.ranks;
  for (uint32_t next = 0; next < ranks; next++) {
    Rank& of = e.ranks[(rank.index + next) % ranks];
    if (of.heads.size() == 0) continue;
    const uint32_t tokens = of.heads.size() < kBlockRows ? kBlockRows / of.heads.size() : 1;
    for (;;) {
      const uint32_t done = __atomic_fetch_add(&of.attended, 1, __ATOMIC_RELAXED) * tokens;
      if (done >= n) break;
      attend_tokens(e, rank, of, layer, n - done < tokens ? 0 : n - done - tokens, n - done);
    }
  }
}

void attend_latents(Engine& e, Rank& rank, uint32_t layer) {
  if (e.deals_tokens()) share_attention(e, rank, layer);
  else if (rank.heads.size() > 0) attend_tokens(e, rank, rank, layer, 0, e.step.tokens_count);
  stage_done(Stage::Attention);
}

// attention[t][head] = V_h o_latent, own heads.
void expand_values(Engine& e, Rank& rank, uint32_t layer) {
  const ModelConfig& c = e.config;
  const uint32_t n = e.step.tokens_count, heads = rank.heads.size();
  const Weight& v_b = e.weight(rank, layer, Slot::AttnVB);
  ShardBatch& batch = rank.batch;
  batch.reset(batch.own_input);
  for (uint32_t i = 0; i < heads; i++) {
    const float* o = rank.o_latent + static_cast<size_t>(i) * c.kv_rank;
    const uint32_t x = batch.put(v_b.type, o, n, c.kv_rank, static_cast<size_t>(heads) * c.kv_rank, {0, n});
    batch.multiply(v_b, i, x, kAllRows, n);
  }
  batch.run();
  for (uint32_t i = 0; i < heads; i++) {
    const float* values = batch.result(batch.jobs[i].y / sizeof(float));
    for (uint32_t t = 0; t < n; t++) {
      __builtin_memcpy(e.attention + (static_cast<size_t>(t) * c.heads + rank.heads.begin + i) * c.value_dim,
                       values + static_cast<size_t>(t) * c.value_dim, c.value_dim * sizeof(float));
    }
  }
  const Range own = {rank.heads.begin * c.value_dim, rank.heads.end * c.value_dim};
  tap_columns(e, Tap::Attention, layer, e.attention + own.begin, c.heads * c.value_dim, own);
  stage_done(Stage::AttentionOut);
}

// x += W_o attention, own rows.
void project_output(Engine& e, Rank& rank, uint32_t layer) {
  const uint32_t n = e.step.tokens_count, width = e.config.heads * e.config.value_dim;
  const Weight& w = e.weight(rank, layer, Slot::AttnOutput);
  ShardBatch& batch = rank.batch;
  open_shared(e, rank);
  const uint32_t x = batch.put(w.type, e.attention, n, width, width, own_rows(e, rank, n));
  const size_t y = batch.multiply(w, 0, x, kAllRows, n);
  run_shared(e, rank, Stage::AttentionOut);
  add_to_residual(e, rank, batch.result(y));
  stage_done(Stage::AttentionOut);
}

}  // namespace

void attend(Engine& e, Rank& rank, uint32_t layer) {
  norm_tokens(e, rank, e.vectors[layer].attn_norm);
  project_inputs(e, rank, layer);
  meet(e);
  append_latents(e, rank, layer);
  if (e.config.q_rank) expand_queries(e, rank, layer);
  absorb_keys(e, rank, layer);
  meet(e);
  attend_latents(e, rank, layer);
  if (e.deals_tokens()) meet(e);
  expand_values(e, rank, layer);
  meet(e);
  project_output(e, rank, layer);
  meet(e);
}

}  // namespace perigee
