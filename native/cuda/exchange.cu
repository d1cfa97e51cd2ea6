// Handing routed experts to the CPU ranks and waiting for them, by words in mapped host memory.
#include "launch.cuh"
#include "stages.h"

namespace perigee::cuda {
namespace {

// Whatever this thread, and those it met at a barrier, wrote before is visible to the host that reads `value`.
__device__ void release(uint32_t* word, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

__device__ uint32_t acquire(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

constexpr int kCopyThreads = 896;  // two vectors a thread for a row of Kimi K2

__global__ void __launch_bounds__(kCopyThreads) publish_kernel(const Publish args) {
  wait_for_previous();
  let_next_start();
  const size_t own = blockIdx.x * size_t(blockDim.x) + threadIdx.x, all = gridDim.x * size_t(blockDim.x);
  const size_t choices = size_t(args.n) * args.used, vectors = size_t(args.n) * args.hidden / 4;
  for (size_t i = own; i < choices; i += all) {
    const int32_t expert = args.chosen[i];
    args.to.chosen[i] = expert >= 0 && args.resident && args.resident[expert] >= 0 ? -1 : expert;
    args.to.weight[i] = args.weight[i];
  }
  for (size_t i = own; i < vectors; i += all)
    reinterpret_cast<float4*>(args.to.h)[i] = reinterpret_cast<const float4*>(args.h)[i];
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (gridDim.x > 1) {
    if (atomicAdd(args.arrived, 1u) != gridDim.x - 1) return;
    *args.arrived = 0;
    __threadfence_system();
  }
  release(args.to.asked, args.number);
}

// One warp: lane 0 looks at `done`, lane 1 at `failed`. It need not wait for the kernels before it to do so.
__global__ void __launch_bounds__(32)
    await_kernel(const ExchangeView exchange, uint32_t number, uint64_t most_nanoseconds) {
  let_next_start();
  const uint64_t begin = nanoseconds();
  for (;;) {
    const uint32_t word = acquire(threadIdx.x == 1 ? exchange.failed : exchange.done);
    const bool over = threadIdx.x == 1 ? word != 0 : word >= number;
    if (__any_sync(~0u, over)) break;
    if (__any_sync(~0u, nanoseconds() - begin > most_nanoseconds)) {
      if (threadIdx.x == 0) release(exchange.failed, 1);
      break;
    }
    __nanosleep(20);
  }
  wait_for_previous();
}

}  // namespace

cudaError_t publish(cudaStream_t stream, const Publish& args) {
  const size_t vectors = size_t(args.n) * args.hidden / 4,
               blocks = (vectors + 2 * kCopyThreads - 1) / (2 * kCopyThreads);
  CUDA_TRY(launch({static_cast<uint32_t>(blocks < 1    ? 1
                                         : blocks > 64 ? 64
                                                       : blocks),
                   kCopyThreads, 0, stream},
                  publish_kernel, args));
  return cudaSuccess;
}

cudaError_t await_experts(cudaStream_t stream, const ExchangeView& exchange, uint32_t number, uint32_t milliseconds) {
  CUDA_TRY(launch({1, 32, 0, stream}, await_kernel, exchange, number, uint64_t(milliseconds) * 1'000'000));
  return cudaSuccess;
}

}  // namespace perigee::cuda
