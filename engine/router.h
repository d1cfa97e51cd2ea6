// The router: which experts each token visits, with which weights, and the tokens of each expert.
#pragma once
#include "config.h"

namespace perigee {

// Chooses experts for one token. scores[experts]: sigmoid or softmax of the router's logits. The bias steers the choice
// only; weights come from the scores themselves. chosen[experts_used] by descending score + bias, ties to the lower index.
// `keys` is scratch [experts].
void choose_experts(const ModelConfig& config, const float* scores, const float* bias, float* keys, int32_t* chosen,
                    float* weights);

// Sorts the slots (token, k) by expert, stably: order[i] = token * experts_used + k, begin[e] the first i of expert e
// (begin[experts] = the total), slot_of the inverse of order. Slots without an expert (-1) are left out: slot_of is -1.
void group_by_expert(const int32_t* chosen, uint32_t tokens, uint32_t experts_used, uint32_t experts, int32_t* order,
                     int32_t* slot_of, int32_t* begin);

}  // namespace perigee
