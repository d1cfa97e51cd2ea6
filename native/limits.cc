#include "limits.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <thread>

#include "memory.h"
#include "rank_thread.h"

namespace perigee {

namespace {

// Larger than any cache's share of one thread, so that memory is read and not a cache.
constexpr size_t kAreaBytes = 256u << 20;
constexpr int kPasses = 2;
// The best of them is the limit; anything else on the machine only slows a round down.
constexpr int kRounds = 5;
// Of dots a round takes at least this long: threads wake from their barrier up to a millisecond apart.
constexpr double kDotMilliseconds = 30;
constexpr uint32_t kTurns = 2'000;

struct Span {
  double amount, begin, end;  // milliseconds
};

using Vector = uint64_t __attribute__((vector_size(64)));

uint64_t read_once(const uint8_t* p, size_t bytes) {
  const auto* v = reinterpret_cast<const Vector*>(p);
  Vector a = {}, b = {}, c = {}, d = {};
  for (size_t i = 0; i < bytes / sizeof(Vector); i += 4) a ^= v[i], b ^= v[i + 1], c ^= v[i + 2], d ^= v[i + 3];
  a ^= b ^ c ^ d;
  return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}

struct Share {
  Span read[kRounds], dots[kRounds];
};

void measure_share(const Kernels& table, pthread_barrier_t& together, Share& share) {
  Area area;
  const bool room = area.allocate(kAreaBytes);
  // Touched: an untouched page is one page of zeros for all, which a cache holds.
  if (room) memset(area.base(), 1, kAreaBytes);
  volatile int32_t sink = 0;
  alignas(64) uint8_t near[8192];
  memset(near, 1, sizeof near);
  for (int round = 0; round < kRounds; round++) {
    pthread_barrier_wait(&together);
    Span& read = share.read[round];
    read.begin = milliseconds();
    for (int pass = 0; room && pass < kPasses; pass++) sink = static_cast<int32_t>(read_once(area.base(), kAreaBytes));
    read.end = milliseconds();
    read.amount = room ? double(kPasses) * kAreaBytes : 0;
    pthread_barrier_wait(&together);
    Span& dots = share.dots[round];
    dots.begin = milliseconds();
    dots.amount = 0;
    do {
      dots.amount += 2.0 * static_cast<double>(dot_products(table, near, kTurns, sink));
      dots.end = milliseconds();
    } while (dots.end - dots.begin < kDotMilliseconds);
  }
}

// All that was done, over the time from the first begin to the last end; the best round, per second in units of 10^9.
double best(const std::vector<Share>& shares, Span (Share::*kind)[kRounds]) {
  double most = 0;
  for (int round = 0; round < kRounds; round++) {
    Span all = (shares[0].*kind)[round];
    for (size_t i = 1; i < shares.size(); i++) {
      const Span& each = (shares[i].*kind)[round];
      all.amount += each.amount;
      if (each.begin < all.begin) all.begin = each.begin;
      if (each.end > all.end) all.end = each.end;
    }
    const double rate = all.amount / (all.end - all.begin) / 1e6;
    if (rate > most) most = rate;
  }
  return most;
}

}  // namespace

void pin_to(int32_t cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

MachineLimits measure_limits(uint32_t threads, const Kernels& table, const std::vector<int32_t>& cpus) {
  std::vector<Share> shares(threads);
  std::vector<std::thread> running;
  pthread_barrier_t together;
  pthread_barrier_init(&together, nullptr, threads);
  for (uint32_t i = 0; i < threads; i++) {
    running.emplace_back([&, i] {
      if (i < cpus.size()) pin_to(cpus[i]);
      measure_share(table, together, shares[i]);
    });
  }
  for (std::thread& each : running) each.join();
  pthread_barrier_destroy(&together);
  return {best(shares, &Share::read), best(shares, &Share::dots)};
}

}  // namespace perigee
