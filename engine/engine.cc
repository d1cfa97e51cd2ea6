// Creation, binding and checking: everything around the forward pass.
#include "engine.h"
#include "arena.h"
#include "rope.h"
#include "sizes.h"
#include "state.h"

namespace perigee {

namespace {

constexpr uint32_t kSlots = static_cast<uint32_t>(Slot::Count);

size_t at_least(size_t a, size_t b) { return a > b ? a : b; }

void lay_out_step(Arena& arena, const ModelConfig& c, const Limits& l, StepBlock& step) {
  step = {};
  step.table_stride = (l.context + l.page_tokens - 1) / l.page_tokens;
  step.tokens = arena.take<int32_t>(l.batch_tokens);
  step.positions = arena.take<int32_t>(l.batch_tokens);
  step.sequences = arena.take<int32_t>(l.batch_tokens);
  step.page_tables = arena.take<int32_t>(static_cast<size_t>(l.batch_sequences) * step.table_stride);
  step.outputs = arena.take<int32_t>(l.batch_outputs);
  step.logits = arena.take<float>(static_cast<size_t>(l.batch_outputs) * c.vocabulary);
}

// Rows that a rank puts for itself: where it only computes experts, those of steps whose tokens are not dealt out.
uint64_t own_input_bytes(const ModelConfig& c, Limits l) {
  if (l.experts_only && l.ranks > 1 && l.batch_tokens >= kDealtTokens) l.batch_tokens = kDealtTokens - 1;
  return engine_input_bytes(c, l);
}

void lay_out_rank(Arena& arena, const ModelConfig& c, const Limits& l, uint32_t r, Rank& rank) {
  const size_t t = l.batch_tokens, slots = t * c.experts_used, heads = largest_share(c.heads, l.ranks, 1);
  rank = {};
  rank.index = r;
  rank.weights = arena.take<Weight>(static_cast<size_t>(c.layers) * kSlots);
  rank.heads = rank_range(c.heads, r, l.ranks, 1);
  rank.hidden_rows = rank_range(c.hidden, r, l.ranks, kRowMultiple);
  rank.order = arena.take<int32_t>(slots);
  rank.slot_of = arena.take<int32_t>(slots);
  rank.token_of = arena.take<int32_t>(slots);
  rank.product_of = arena.take<float*>(slots);
  rank.expert_begin = arena.take<int32_t>(c.experts + 1);
  ShardBatch& batch = rank.batch;
  batch.exact = l.exact;
  batch.input_capacity = engine_input_bytes(c, l);
  batch.output_capacity = engine_output_bytes(c, l);
  batch.job_capacity = job_capacity(c, l);
  batch.own_input = arena.take<uint8_t>(own_input_bytes(c, l));
  batch.output = arena.take<uint8_t>(batch.output_capacity);
  batch.jobs = arena.take<Job>(batch.job_capacity);
  batch.shards = arena.take<uint32_t>(batch.job_capacity);
  if (l.experts_only) return;
  rank.h = arena.take<float>(t * at_least(c.hidden, c.q_rank));
  rank.q = arena.take<float>(t * heads * c.query_dim());
  rank.q_absorbed = arena.take<float>(t * heads * c.latent_dim());
  rank.o_latent = arena.take<float>(t * heads * c.kv_rank);
  rank.scores = arena.take<float>(at_least(kScoreFloats, heads * l.context));
  rank.lengths = arena.take<int32_t>(t * heads);
  rank.chosen = arena.take<int32_t>(slots);
  rank.gate = arena.take<float>(slots);
  rank.keys = arena.take<float>(c.experts);
  rank.probabilities = arena.take<float>(c.experts);
}

// Most locations all the ranks' matrices can need; engine_bind deals them out.
size_t location_count(const ModelConfig& c, const Limits& l) {
  const size_t moe_layers = c.layers - c.dense_layers;
  if (l.experts_only) return l.ranks * moe_layers * 3 * c.experts;
  return l.ranks * (2 + c.layers * (10 + 2 * static_cast<size_t>(c.heads)) +
                    moe_layers * (4 + 3 * static_cast<size_t>(c.experts)));
}

// What a whole model has beside the ranks' own: activations that pass between them, vectors and pages.
void lay_out_model(Arena& arena, const ModelConfig& c, const Limits& l, Engine& e) {
  const size_t t = l.batch_tokens;
  lay_out_step(arena, c, l, e.step);
  e.frequencies = arena.take<float>(c.rope_dim / 2);
  e.rope = arena.take<float>(t * c.rope_dim);
  e.x = arena.take<float>(t * c.hidden);
  e.qkv = arena.take<float>(t * e.qkv_width());
  e.attention = arena.take<float>(t * c.heads * c.value_dim);
  e.router_scores = arena.take<float>(t * c.experts);
  e.mid = arena.take<float>(t * at_least(c.shared_width, c.dense_width));
  e.page_pointers = arena.take<const float*>(static_cast<size_t>(l.ranks) * e.step.table_stride);
  e.output_norm = arena.take<float>(c.hidden);
  e.vectors = arena.take<LayerVectors>(c.layers);
  for (uint32_t layer = 0; layer < c.layers; layer++) {
    const LayerVectors vectors = {arena.take<float>(c.hidden), arena.take<float>(c.hidden), arena.take<float>(c.q_rank),
                                  arena.take<float>(c.kv_rank), arena.take<float>(c.experts)};
    if (e.vectors) e.vectors[layer] = vectors;
  }
  lay_out_taps(arena, c, l, e.taps);
  e.pages = arena.take<float>(static_cast<size_t>(c.layers) * l.pages * l.page_tokens * c.latent_dim());
}

// The whole arena, the engine first. With a null base it is only measured.
uint64_t lay_out(void* base, const ModelConfig& c, const Limits& l) {
  Arena arena(base);
  Engine* placed = arena.take<Engine>(1);
  Engine measured;
  Engine& e = base ? *placed : measured;
  e = {};
  e.config = c;
  e.limits = l;
  e.shared_input = arena.take<uint8_t>(engine_input_bytes(c, l));
  e.expert_mid = arena.take<float>(size_t{l.batch_tokens} * c.experts_used * c.expert_width);
  e.ranks = arena.take<Rank>(l.ranks);
  for (uint32_t r = 0; r < l.ranks; r++) {
    Rank counted_rank;
    lay_out_rank(arena, c, l, r, base ? e.ranks[r] : counted_rank);
  }
  e.locations_capacity = location_count(c, l);
  e.locations = arena.take<Location>(e.locations_capacity);
  if (l.experts_only) {
    e.exchange = lay_out_exchange(arena, c, l);
  } else {
    lay_out_model(arena, c, l, e);
  }
  return arena.used();
}

}  // namespace

uint64_t engine_bytes(const ModelConfig& config, const Limits& limits) {
  return config_is_sound(config, limits) ? lay_out(nullptr, config, limits) : 0;
}

Status engine_create(void* arena, uint64_t bytes, const ModelConfig& config, const Limits& limits, const char* isa,
                     Engine** out) {
  const uint64_t needed = engine_bytes(config, limits);
  if (needed == 0) return Status::BadConfig;
  if (bytes < needed) return Status::ArenaTooSmall;
  const Kernels* kernels = kernels_named(isa);
  if (!kernels) return Status::UnknownIsa;
  lay_out(arena, config, limits);
  Engine& e = *static_cast<Engine*>(arena);
  e.kernels = kernels;
  for (uint32_t r = 0; r < limits.ranks; r++) e.ranks[r].batch.kernels = kernels;
  *out = &e;
  if (limits.experts_only) return Status::Ok;
  const float m = config.attention_factor;
  e.softmax_scale = m * m / __builtin_sqrtf(static_cast<float>(config.query_dim()));
  rope_frequencies(config, e.frequencies);
  return Status::Ok;
}

float* engine_vector(Engine& e, Vector vector, uint32_t layer, uint32_t* length) {
  const ModelConfig& c = e.config;
  if (layer >= c.layers || e.limits.experts_only) return nullptr;
  const LayerVectors& v = e.vectors[layer];
  switch (vector) {
    case Vector::OutputNorm:
      *length = c.hidden;
      return e.output_norm;
    case Vector::AttnNorm:
      *length = c.hidden;
      return v.attn_norm;
    case Vector::FfnNorm:
      *length = c.hidden;
      return v.ffn_norm;
    case Vector::QANorm:
      *length = c.q_rank;
      return c.q_rank ? v.q_a_norm : nullptr;
    case Vector::KVANorm:
      *length = c.kv_rank;
      return v.kv_a_norm;
    case Vector::RouterBias:
      *length = c.experts;
      return c.experts ? v.router_bias : nullptr;
    case Vector::Count:
      break;
  }
  return nullptr;
}

namespace {

// Does this part agree with the model and with the rows or heads that the rank must own?
bool part_fits(const Engine& e, uint32_t r, Slot slot, uint32_t row_begin, uint32_t rows, uint32_t cols,
               uint32_t count) {
  const MatrixShape shape = slot_shape(e.config, slot);
  const Rank& rank = e.ranks[r];
  const bool of_experts = slot == Slot::ExpertGate || slot == Slot::ExpertUp || slot == Slot::ExpertDown;
  if (shape.rows == 0 || cols != shape.cols || (e.limits.experts_only && !of_experts)) return false;
  if (slot == Slot::AttnKB || slot == Slot::AttnVB) {
    return row_begin == 0 && rows == shape.rows && count == rank.heads.size();
  }
  if (count != shape.count) return false;
  if (slot == Slot::AttnQ || slot == Slot::AttnQB) {
    return row_begin == rank.heads.begin * e.config.query_dim() && rows == rank.heads.size() * e.config.query_dim();
  }
  const Range own = rank_range(shape.rows, r, e.limits.ranks, kRowMultiple);
  return row_begin == own.begin && rows == own.size();
}

}  // namespace

Location* engine_bind(Engine& e, uint32_t rank, Slot slot, uint32_t layer, DType type, uint32_t row_begin,
                      uint32_t rows, uint32_t cols, uint32_t count) {
  const BlockShape block = static_cast<uint32_t>(type) < kDTypeCount ? block_shape(type) : BlockShape{0, 0};
  if (rank >= e.limits.ranks || layer >= e.config.layers || slot >= Slot::Count || block.elements == 0) return nullptr;
  if (cols % block.elements || !part_fits(e, rank, slot, row_begin, rows, cols, count)) return nullptr;
  if (count > e.locations_capacity - e.locations_used) return nullptr;
  Location* at = e.locations + e.locations_used;
  e.locations_used += count;
  e.ranks[rank].weights[layer * kSlots + static_cast<uint32_t>(slot)] = {at, type, row_begin, rows, cols, count};
  return at;
}

StepBlock* engine_step_block(Engine& e) { return &e.step; }

Status engine_check_step(const Engine& e) {
  const StepBlock& s = e.step;
  const Limits& l = e.limits;
  if (l.experts_only) return Status::BadStep;
  if (s.tokens_count == 0 || s.tokens_count > l.batch_tokens || s.outputs_count > l.batch_outputs)
    return Status::BadStep;
  if (s.sequences_count == 0 || s.sequences_count > l.batch_sequences) return Status::BadStep;
  for (uint32_t t = 0; t < s.tokens_count; t++) {
    if (static_cast<uint32_t>(s.tokens[t]) >= e.config.vocabulary) return Status::BadStep;
    if (static_cast<uint32_t>(s.positions[t]) >= l.context) return Status::BadStep;
    if (static_cast<uint32_t>(s.sequences[t]) >= s.sequences_count) return Status::BadStep;
    if (t > 0 && s.sequences[t] == s.sequences[t - 1] && s.positions[t] != s.positions[t - 1] + 1)
      return Status::BadStep;
    const int32_t* table = s.page_tables + static_cast<size_t>(s.sequences[t]) * s.table_stride;
    for (uint32_t p = 0; p <= static_cast<uint32_t>(s.positions[t]) / l.page_tokens; p++) {
      if (static_cast<uint32_t>(table[p]) >= l.pages) return Status::BadStep;
    }
  }
  for (uint32_t i = 0; i < s.outputs_count; i++) {
    if (static_cast<uint32_t>(s.outputs[i]) >= s.tokens_count) return Status::BadStep;
  }
  return Status::Ok;
}

void engine_abort(Engine& e) {
  __atomic_store_n(&e.barrier.aborted, 1, __ATOMIC_SEQ_CST);
  wake_all(&e.barrier.generation);
}

}  // namespace perigee
