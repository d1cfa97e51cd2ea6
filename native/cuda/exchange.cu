// Handing routed experts to the CPU ranks and waiting for them, by words in mapped host memory.
#include "exchange.cuh"
#include "launch.cuh"

namespace perigee::cuda {
namespace {

constexpr int kCopyThreads = 896;  // two vectors a thread for a row of Kimi K2
constexpr uint32_t kMostCopyBlocks = 64;

__global__ void __launch_bounds__(kCopyThreads) publish_kernel(const Publish args) {
  wait_for_previous();
  let_next_start();
  const size_t own = blockIdx.x * size_t(blockDim.x) + threadIdx.x, all = gridDim.x * size_t(blockDim.x);
  const size_t choices = size_t(args.n) * args.used, vectors = size_t(args.n) * args.hidden / 4;
  for (size_t i = own; i < choices; i += all) {
    args.to.chosen[i] = for_ranks(args.chosen[i], args.resident);
    args.to.weight[i] = args.weight[i];
  }
  for (size_t i = own; i < vectors; i += all)
    reinterpret_cast<float4*>(args.to.h)[i] = reinterpret_cast<const float4*>(args.h)[i];
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (gridDim.x > 1) {
    __threadfence_system();
    if (atomicAdd(args.arrived, 1u) != gridDim.x - 1) return;
    *args.arrived = 0;
    __threadfence_system();
  }
  release(args.to.asked, args.number);
}

// It need not wait for the kernels before it to look.
__global__ void __launch_bounds__(32) await_kernel(const Await wait) {
  let_next_start();
  await_done(wait);
  wait_for_previous();
}

}  // namespace

cudaError_t publish(cudaStream_t stream, const Publish& args) {
  const size_t vectors = size_t(args.n) * args.hidden / 4;
  const size_t blocks = (vectors + 2 * kCopyThreads - 1) / (2 * kCopyThreads);
  const uint32_t grid = blocks < 1 ? 1 : blocks > kMostCopyBlocks ? kMostCopyBlocks : static_cast<uint32_t>(blocks);
  CUDA_TRY(launch({grid, kCopyThreads, 0, stream}, publish_kernel, args));
  return cudaSuccess;
}

cudaError_t await_experts(cudaStream_t stream, const ExchangeView& exchange, uint32_t number, uint32_t milliseconds) {
  CUDA_TRY(launch({1, 32, 0, stream}, await_kernel, Await{exchange, number, milliseconds}));
  return cudaSuccess;
}

}  // namespace perigee::cuda
