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

// Called by a whole warp. Every look is a read over the bus that the CPU's own accesses to the word wait for: `failed` is
// looked at first and then seldom.
__device__ inline void await_done(const Await& wait) {
  constexpr uint32_t kSeldom = 64;
  const uint64_t begin = nanoseconds(), most = uint64_t(wait.milliseconds) * 1'000'000;
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t look = 0;; look++) {
    bool over = false;
    if (lane == 0 || (lane == 1 && look % kSeldom == 0)) {
      const uint32_t word = acquire(lane == 0 ? wait.exchange.done : wait.exchange.failed);
      over = lane == 0 ? word >= wait.number : word != 0;
    }
    if (__any_sync(~0u, over)) return;
    if (__any_sync(~0u, nanoseconds() - begin > most)) {
      if (lane == 0) release(wait.exchange.failed, 1);
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
