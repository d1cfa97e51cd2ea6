// How large a rank's buffers must be, from the model's shape and the limits.
#pragma once
#include "engine.h"

namespace perigee {

// The largest share any rank gets of `total` rows.
uint32_t largest_share(uint32_t total, uint32_t ranks, uint32_t multiple);

// Most jobs one batch may hold.
uint32_t job_capacity(const ModelConfig& config, const Limits& limits);

// True when every dimension is usable and no product below can overflow.
bool config_is_sound(const ModelConfig& config, const Limits& limits);

// A slot's matrices as the model has them: rows are what the ranks share, or the heads. Zeros when it has none.
struct MatrixShape {
  uint32_t rows, cols, count;
};
MatrixShape slot_shape(const ModelConfig& config, Slot slot);

constexpr uint32_t kRowMultiple = 4;  // rows are dealt to ranks in fours, the height of a prefill tile

}  // namespace perigee
