#include "sizes.h"

namespace perigee {

namespace {

uint64_t largest(uint64_t a, uint64_t b) { return a > b ? a : b; }

// An activation row takes at most its floats; the quantized kinds with their scales and sums stay below.
uint64_t row_bound(uint64_t cols) { return cols * sizeof(float) + 64; }

}  // namespace

Range rank_range(uint32_t total, uint32_t rank, uint32_t ranks, uint32_t multiple) {
  const uint64_t units = (total + multiple - 1) / multiple;
  const uint64_t begin = units * rank / ranks * multiple, end = units * (rank + 1) / ranks * multiple;
  return {static_cast<uint32_t>(begin < total ? begin : total), static_cast<uint32_t>(end < total ? end : total)};
}

uint32_t largest_share(uint32_t total, uint32_t ranks, uint32_t multiple) {
  const uint32_t units = (total + multiple - 1) / multiple;
  return (units + ranks - 1) / ranks * multiple;
}

uint32_t job_capacity(const ModelConfig& c, const Limits& l) {
  return static_cast<uint32_t>(largest(largest(l.batch_tokens, 2 * c.experts), c.heads) + 4);
}

uint64_t engine_input_bytes(const ModelConfig& c, const Limits& l) {
  const uint64_t t = l.batch_tokens, slots = t * c.experts_used, heads = largest_share(c.heads, l.ranks, 1);
  // h in up to three kinds, an index list; then what lies between the experts' two products
  uint64_t bytes = 3 * t * row_bound(c.hidden) + slots * sizeof(int32_t) + 16;
  bytes = largest(bytes, slots * row_bound(c.expert_width));
  if (l.experts_only) return bytes;
  bytes = largest(bytes, t * row_bound(c.q_rank));
  bytes = largest(bytes, heads * t * row_bound(largest(c.nope_dim, c.kv_rank)));
  bytes = largest(bytes, t * row_bound(uint64_t{c.heads} * c.value_dim));
  bytes = largest(bytes, t * row_bound(c.dense_width));
  return largest(bytes, slots * row_bound(c.expert_width) + t * row_bound(c.shared_width));
}

uint64_t engine_output_bytes(const ModelConfig& c, const Limits& l) {
  const uint64_t t = l.batch_tokens, slots = t * c.experts_used, heads = largest_share(c.heads, l.ranks, 1);
  const auto share = [&](uint32_t total) { return uint64_t{largest_share(total, l.ranks, kRowMultiple)}; };
  const uint64_t room = uint64_t{16} * job_capacity(c, l);
  uint64_t floats = largest(2 * slots * share(c.expert_width), slots * share(c.hidden));
  if (l.experts_only) return floats * sizeof(float) + room;
  floats = largest(floats, t * c.hidden);  // embedding rows
  floats = largest(floats, uint64_t{l.batch_outputs} * share(c.vocabulary));
  floats = largest(floats, t * (share(c.q_rank) + share(c.latent_dim()) + heads * c.query_dim()));
  floats = largest(floats, heads * t * largest(c.kv_rank, c.value_dim));
  floats = largest(floats, 2 * t * share(c.dense_width));
  floats = largest(floats, t * (share(c.experts) + 2 * share(c.shared_width)));
  floats = largest(floats, (slots + t) * share(c.hidden));
  return floats * sizeof(float) + room;
}

bool config_is_sound(const ModelConfig& c, const Limits& l) {
  constexpr uint32_t kMost = 1u << 20;  // of any dimension: four times the largest vocabulary of the family
  const uint32_t positive[] = {c.layers,        c.hidden,          c.vocabulary, c.heads,
                               c.kv_rank,       c.nope_dim,        c.rope_dim,   c.value_dim,
                               c.groups,        c.groups_used,     l.ranks,      l.batch_tokens,
                               l.batch_outputs, l.batch_sequences, l.pages,      l.page_tokens};
  const uint32_t any[] = {c.q_rank, c.dense_width, c.experts, c.expert_width, c.shared_width};
  for (const uint32_t value : positive) {
    if (value == 0 || value > kMost) return false;
  }
  for (const uint32_t value : any) {
    if (value > kMost) return false;
  }
  if (c.layers > 4096 || c.heads > 4096 || c.rope_dim % 2 || l.ranks > kMaxRanks || c.dense_layers > c.layers)
    return false;
  if (l.batch_outputs > l.batch_tokens || l.context == 0 || l.batch_tokens > 65536) return false;
  if (c.dense_layers > 0 && c.dense_width == 0) return false;
  if (l.experts_only && (l.taps || c.dense_layers == c.layers)) return false;
  if (c.dense_layers == c.layers) return true;
  return c.experts > 0 && c.expert_width > 0 && c.experts_used > 0 && c.experts_used <= c.experts &&
         c.experts_used <= kMaxExpertsUsed && c.groups <= 256 && c.experts % c.groups == 0 &&
         c.groups_used <= c.groups && c.experts_used <= c.experts / c.groups * c.groups_used;
}

MatrixShape slot_shape(const ModelConfig& c, Slot slot) {
  switch (slot) {
    case Slot::TokenEmbd:
    case Slot::Output:
      return {c.vocabulary, c.hidden, 1};
    case Slot::AttnQ:
      return {c.q_rank ? 0 : c.heads * c.query_dim(), c.hidden, 1};
    case Slot::AttnQA:
      return {c.q_rank, c.hidden, 1};
    case Slot::AttnQB:
      return {c.q_rank ? c.heads * c.query_dim() : 0, c.q_rank, 1};
    case Slot::AttnKVA:
      return {c.latent_dim(), c.hidden, 1};
    case Slot::AttnKB:
      return {c.kv_rank, c.nope_dim, c.heads};
    case Slot::AttnVB:
      return {c.value_dim, c.kv_rank, c.heads};
    case Slot::AttnOutput:
      return {c.hidden, c.heads * c.value_dim, 1};
    case Slot::FfnGate:
    case Slot::FfnUp:
      return {c.dense_width, c.hidden, 1};
    case Slot::FfnDown:
      return {c.hidden, c.dense_width, 1};
    case Slot::Router:
      return {c.experts, c.hidden, 1};
    case Slot::ExpertGate:
    case Slot::ExpertUp:
      return {c.expert_width, c.hidden, c.experts};
    case Slot::ExpertDown:
      return {c.hidden, c.expert_width, c.experts};
    case Slot::SharedGate:
    case Slot::SharedUp:
      return {c.shared_width, c.hidden, 1};
    case Slot::SharedDown:
      return {c.hidden, c.shared_width, 1};
    case Slot::Count:
      break;
  }
  return {0, 0, 0};
}

}  // namespace perigee
