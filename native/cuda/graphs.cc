#include "graphs.h"

#include <algorithm>

namespace perigee::cuda {

namespace {

// Some hundred bytes a kernel and a megabyte each: what a busy server needs are a few token counts of a few lengths.
constexpr size_t kMostGraphs = 64;
constexpr uint32_t kShortestBucket = 512;

cudaError_t capture(Part& part, const Step& step, float* logits, cudaGraphExec_t* exec) {
  cudaGraph_t graph = nullptr;
  CUDA_TRY(cudaStreamBeginCapture(part.stream, cudaStreamCaptureModeThreadLocal));
  const cudaError_t recorded = forward(part, step, logits);
  // Capturing must end even where a launch failed.
  CUDA_TRY(cudaStreamEndCapture(part.stream, &graph));
  CUDA_TRY(recorded);
  const cudaError_t made = cudaGraphInstantiate(exec, graph, 0);
  cudaGraphDestroy(graph);
  CUDA_TRY(made);
  return cudaSuccess;
}

}  // namespace

uint32_t positions_bucket(uint32_t positions, uint32_t context) {
  uint32_t bucket = kShortestBucket;
  while (bucket < positions) bucket *= 2;
  return std::min(bucket, context);
}

cudaError_t StepGraphs::run(Part& part, const Step& step, float* logits) {
  const Key key = {step.n, step.outputs, step.most_positions, step.pairs};
  const auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    if (graphs_.size() >= kMostGraphs) clear();
    graphs_[key] = nullptr;
    return forward(part, step, logits);
  }
  if (!found->second) CUDA_TRY(capture(part, step, logits, &found->second));
  CUDA_TRY(cudaGraphLaunch(found->second, part.stream));
  return cudaSuccess;
}

void StepGraphs::clear() {
  for (const auto& [key, exec] : graphs_)
    if (exec) cudaGraphExecDestroy(exec);
  graphs_.clear();
}

}  // namespace perigee::cuda
