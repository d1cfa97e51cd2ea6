// What this machine can do at most: the measure that a model's speed is held against.
#pragma once
#include <stdint.h>
#include <vector>

#include "../engine/kernels/kernels.h"

namespace perigee {

struct MachineLimits {
  double read_gb_per_second;  // memory read by all threads at once
  double
      int8_gops;  // 10^9 8-bit multiplies and adds a second, from the first-level cache, with the table's instruction
};

// Takes a second or two and 256 MB a thread. Thread i runs on cpus[i] where given.
MachineLimits measure_limits(uint32_t threads, const Kernels& table, const std::vector<int32_t>& cpus);

// Products of 8-bit numbers with `table`'s instruction: 8 KiB at `x` (64-byte aligned) `turns` times over. Returns how many
// multiply-adds were done; `sink` keeps the compiler from leaving them out.
uint64_t dot_products(const Kernels& table, const uint8_t* x, uint32_t turns, volatile int32_t& sink);

// Puts the calling thread on one CPU. Advice only: a CPU taken away since the plan was made costs speed, not results.
void pin_to(int32_t cpu);

}  // namespace perigee
