// The forward pass of one part of a model.
#pragma once
#include "part.h"

namespace perigee::cuda {

// Consecutive tokens of one sequence.
struct Run {
  uint32_t begin, count, sequence;
  int32_t first;  // position
};

// What the launches of a step depend on; the rest is read on the device.
struct Step {
  uint32_t n, outputs;
  uint32_t most_positions;  // no position is larger
  bool pairs;               // tokens 2 i and 2 i + 1 are neighbours
  bool streaming;           // experts that are not resident pass through the device, instead of being left to the ranks
  std::vector<Run> runs;
  // On the host, [layers + 1][n][hidden]: what each layer of the model begins with, and the head, in place of what came
  // before. Null: their own. Only where there are taps.
  const float* residuals = nullptr;
};

// Enqueues the part's share: from token ids or the x of the part before it, to the x of the next one or to logits, which
// go to `logits` in pinned memory.
cudaError_t forward(Part& part, const Step& step, float* logits);

}  // namespace perigee::cuda
