#include "router.h"

namespace perigee {

namespace {

constexpr float kNever = -__builtin_inff();

// The `k` largest of keys[n] by descending value, ties to the lower index; a NaN counts as -inf.
void top_k(const float* keys, uint32_t n, uint32_t k, int32_t* out) {
  uint32_t held = 0;
  float held_keys[kMaxExpertsUsed];
  for (uint32_t i = 0; i < n; i++) {
    const float key = keys[i] == keys[i] ? keys[i] : kNever;
    if (held == k && !(key > held_keys[k - 1])) continue;
    uint32_t at = held < k ? held++ : k - 1;
    while (at > 0 && key > held_keys[at - 1]) {
      held_keys[at] = held_keys[at - 1];
      out[at] = out[at - 1];
      at--;
    }
    held_keys[at] = key;
    out[at] = static_cast<int32_t>(i);
  }
}

// DeepSeek-V3 judges a group by the sum of its two best keys; the softmax models (V2) by its best one.
float group_score(const float* keys, uint32_t n, Gating gating) {
  float first = kNever, second = kNever;
  for (uint32_t i = 0; i < n; i++) {
    if (keys[i] > first) {
      second = first;
      first = keys[i];
    } else if (keys[i] > second) {
      second = keys[i];
    }
  }
  return gating == Gating::Softmax || n < 2 ? first : first + second;
}

// Rules out every group but the best `groups_used`.
void limit_groups(const ModelConfig& config, float* keys) {
  const uint32_t size = config.experts / config.groups;
  float group_scores[256] = {};
  int32_t kept[256];
  for (uint32_t g = 0; g < config.groups; g++) group_scores[g] = group_score(keys + g * size, size, config.gating);
  top_k(group_scores, config.groups, config.groups_used, kept);
  for (uint32_t g = 0; g < config.groups; g++) {
    bool keep = false;
    for (uint32_t i = 0; i < config.groups_used; i++) keep |= kept[i] == static_cast<int32_t>(g);
    for (uint32_t e = 0; e < size && !keep; e++) keys[g * size + e] = kNever;
  }
}

}  // namespace

void choose_experts(const ModelConfig& config, const float* scores, const float* bias, float* keys, int32_t* chosen,
                    float* weights) {
  for (uint32_t e = 0; e < config.experts; e++) keys[e] = scores[e] + bias[e];
  if (config.groups > 1) limit_groups(config, keys);
  top_k(keys, config.experts, config.experts_used, chosen);
  float sum = 0;
  for (uint32_t k = 0; k < config.experts_used; k++) sum += weights[k] = scores[chosen[k]];
  const float divisor = sum + 1e-20f;
  for (uint32_t k = 0; k < config.experts_used; k++) {
    if (config.normalize_weights) weights[k] = weights[k] / divisor;
    weights[k] = weights[k] * config.weight_scale;
  }
}

void group_by_expert(const int32_t* chosen, uint32_t tokens, uint32_t experts_used, uint32_t experts, int32_t* order,
                     int32_t* slot_of, int32_t* begin) {
  const uint32_t slots = tokens * experts_used;
  for (uint32_t e = 0; e <= experts; e++) begin[e] = 0;
  const auto left_out = [&](uint32_t s) { return static_cast<uint32_t>(chosen[s]) >= experts; };
  for (uint32_t s = 0; s < slots; s++) {
    if (!left_out(s)) begin[chosen[s] + 1]++;
  }
  for (uint32_t e = 0; e < experts; e++) begin[e + 1] += begin[e];
  // begin[e] serves as the running end of expert e while slots are dealt out, then every entry is one expert too far.
  for (uint32_t s = 0; s < slots; s++) {
    slot_of[s] = -1;
    if (left_out(s)) continue;
    const int32_t at = begin[chosen[s]]++;
    order[at] = static_cast<int32_t>(s);
    slot_of[s] = at;
  }
  for (uint32_t e = experts; e > 0; e--) begin[e] = begin[e - 1];
  begin[0] = 0;
}

}  // namespace perigee
