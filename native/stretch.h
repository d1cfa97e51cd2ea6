// The products of one stretch of a step. Ranks that have done with theirs help the others: where neighbours take part of the
// cores these run at different speeds, and all ranks meet after a stretch.
#pragma once
#include <atomic>
#include <vector>

#include "../engine/job.h"

namespace perigee {

class alignas(64) Stretch {
 public:
  // Runs the jobs of rank `own`; returns when they are done, and nothing that the other ranks have laid open is left.
  static void run(const Kernels& kernels, Stretch* ranks, uint32_t count, uint32_t own, const Job* jobs,
                  uint32_t jobs_count, const uint8_t* input, uint8_t* output);

 private:
  void open(const Job* jobs, uint32_t count, const uint8_t* input, uint8_t* output);
  bool run_piece(const Kernels& kernels);
  void await() const;

  const Job* jobs_ = nullptr;
  const uint8_t* input_ = nullptr;
  uint8_t* output_ = nullptr;
  std::vector<uint32_t> first_;  // [jobs + 1] number of each job's first piece
  // Pieces that nobody has taken, in the lower half; a number of the stretch above, so that who looked at an earlier one
  // takes nothing.
  alignas(64) std::atomic<uint64_t> left_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
};

}  // namespace perigee
