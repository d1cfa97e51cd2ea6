// Steps of few tokens as CUDA graphs, so that the host need not launch some seven hundred kernels one by one.
#pragma once
#include <map>
#include <tuple>

#include "forward.h"

namespace perigee::cuda {

class StepGraphs {
 public:
  StepGraphs() = default;
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;
  ~StepGraphs() { clear(); }

  // forward() by a graph. A kind of step is captured when it comes a second time: rare kinds need none, and the first time
  // loads the kernels, which capturing must not.
  cudaError_t run(Part& part, const Step& step, float* logits);
  void clear();

 private:
  using Key = std::tuple<uint32_t, uint32_t, uint32_t, bool>;  // all of a Step that matters where all are absorbed
  std::map<Key, cudaGraphExec_t> graphs_;                      // null: came once
};

// Longest contexts of steps that share a graph, in steps of two: attention sizes its grid by them.
uint32_t positions_bucket(uint32_t positions, uint32_t context);

}  // namespace perigee::cuda
