// What the core asks of a native door: jobs run in place and shared, sleeping on futexes, stage times by the monotonic clock.
#include "../engine/door.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../engine/barrier.h"
#include "rank_thread.h"

namespace perigee {

thread_local RankThread* rank_thread = nullptr;

void shard_call(uint32_t, const Job* jobs, uint32_t count, const uint8_t* input, uint32_t, uint8_t* output, uint32_t,
                uint32_t) {
  const RankThread& rank = *rank_thread;
  Stretch::run(*rank.kernels, rank.stretches, rank.ranks, rank.index, jobs, count, input, output);
}

double milliseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

void stage_done(Stage stage) {
  RankThread& rank = *rank_thread;
  const double now = milliseconds();
  rank.stage_milliseconds[static_cast<uint32_t>(stage)] += now - rank.last;
  rank.last = now;
}

void wait_while_equal(int32_t* word, int32_t expected) {
  const timespec second = {1, 0};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, &second, nullptr, 0);
}

void wake_all(int32_t* word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0); }

void rest() {
  const timespec nap = {0, 50'000};
  nanosleep(&nap, nullptr);
}

// The core keeps nothing on its stack that would need to be undone.
void leave_step() { _longjmp(rank_thread->outside, 1); }

}  // namespace perigee
