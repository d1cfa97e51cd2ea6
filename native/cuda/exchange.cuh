// Words in mapped host memory that the CPU reads and writes as well.
#pragma once
#include "stages.h"

namespace perigee::cuda {

// Whatever this thread, and those it met at a barrier, wrote before is visible to the host that reads `value`.
__device__ inline void release(uint32_t* word, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

__device__ inline uint32_t acquire(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ inline uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

// Called by a whole warp: lane 1 looks at `failed`, the others at `done`.
__device__ inline void await_done(const Await& wait) {
  const uint64_t begin = nanoseconds(), most = uint64_t(wait.milliseconds) * 1'000'000;
  const bool looks_at_failed = threadIdx.x % 32 == 1;
  for (;;) {
    const uint32_t word = acquire(looks_at_failed ? wait.exchange.failed : wait.exchange.done);
    if (__any_sync(~0u, looks_at_failed ? word != 0 : word >= wait.number)) return;
    if (__any_sync(~0u, nanoseconds() - begin > most)) {
      if (threadIdx.x % 32 == 0) release(wait.exchange.failed, 1);
      return;
    }
    __nanosleep(20);
  }
}

// What the CPU is told of a chosen expert.
__device__ inline int32_t for_ranks(int32_t expert, const int32_t* resident) {
  return expert >= 0 && resident && resident[expert] >= 0 ? -1 : expert;
}

}  // namespace perigee::cuda
