// The exchange with the CPU ranks, which a thread of this program plays: what arrives on either side, and what the meeting
// costs a layer. `exchange small` leaves the times out, for the sanitizer.
#include <atomic>
#include <chrono>
#include <thread>

#include "../../native/cuda/stages.h"
#include "rows.cuh"

using namespace perigee;
using namespace perigee::cuda;
using check::device;
using check::download;
using check::expect;
using check::make_rows;
using check::normal;
using check::random_bits;
using check::upload;

namespace {

struct Exchange {
  uint8_t* host;
  uint32_t n, hidden, used;
  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(host + offset);
  }
  size_t h() const { return 4096; }
  size_t sum() const { return h() + size_t(n) * hidden * 4; }
  size_t chosen() const { return sum() + size_t(n) * hidden * 4; }
  size_t weight() const { return chosen() + 4096; }
  uint32_t word(int i) const { return __atomic_load_n(at<uint32_t>(128 * i), __ATOMIC_ACQUIRE); }
  void set(int i, uint32_t v) const { __atomic_store_n(at<uint32_t>(128 * i), v, __ATOMIC_RELEASE); }
  ExchangeView view() const {
    uint8_t* d;
    MUST(cudaHostGetDevicePointer(&d, host, 0));
    return {reinterpret_cast<float*>(d + h()),      reinterpret_cast<int32_t*>(d + chosen()),
            reinterpret_cast<float*>(d + weight()), reinterpret_cast<const float*>(d + sum()),
            reinterpret_cast<uint32_t*>(d),         reinterpret_cast<uint32_t*>(d + 128),
            reinterpret_cast<uint32_t*>(d + 256)};
  }
};

Exchange make_exchange(uint32_t n, uint32_t hidden, uint32_t used) {
  Exchange x = {nullptr, n, hidden, used};
  const size_t bytes = (x.weight() + 4096 + 4095) & ~size_t(4095);
  x.host = static_cast<uint8_t*>(aligned_alloc(4096, bytes));
  memset(x.host, 0, bytes);
  MUST(cudaHostRegister(x.host, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable));
  return x;
}

void check_exchange(uint32_t n, uint32_t layers) {
  const uint32_t hidden = 7168, used = 8, experts = 384;
  const Exchange x = make_exchange(n, hidden, used);
  const auto h = normal(size_t(n) * hidden), weight = normal(n * used);
  std::vector<int32_t> chosen(n * used), resident(experts, -1), want(n * used);
  for (uint32_t e = 0; e < experts; e += 3) resident[e] = e / 3;
  for (uint32_t i = 0; i < n * used; i++) {
    chosen[i] = i % 11 == 10 ? -1 : int32_t(random_bits() % experts);
    want[i] = chosen[i] >= 0 && resident[chosen[i]] >= 0 ? -1 : chosen[i];
  }
  uint32_t* arrived = device<uint32_t>(1);
  MUST(cudaMemset(arrived, 0, 4));
  float *sums = device<float>(size_t(n) * hidden), *dx = upload(h);
  MUST(cudaMemset(sums, 0, size_t(n) * hidden * 4));
  Publish args = {x.view(), dx, upload(chosen), upload(weight), upload(resident), n, hidden, used, 0, arrived};
  std::atomic<uint32_t> wrong = 0;
  std::thread ranks([&] {
    for (uint32_t i = 1; i <= layers; i++) {
      while (x.word(0) < i && !x.word(2)) {}
      wrong += memcmp(x.at<float>(x.h()), h.data(), h.size() * 4) != 0;
      wrong += memcmp(x.at<int32_t>(x.chosen()), want.data(), want.size() * 4) != 0;
      wrong += memcmp(x.at<float>(x.weight()), weight.data(), weight.size() * 4) != 0;
      memset(x.at<float>(x.h()), 0, h.size() * 4);
      for (size_t j = 0; j < size_t(n) * hidden; j++) x.at<float>(x.sum())[j] = float(i);
      x.set(1, i);
    }
  });
  const Rows out = {hidden, device<float>(size_t(n) * hidden), nullptr, nullptr, nullptr, nullptr};
  const std::vector<float> ones(hidden, 1.0f);
  float* norm = upload(ones);
  for (uint32_t i = 1; i <= layers; i++) {
    args.number = i;
    MUST(publish(nullptr, args));
    MUST(await_experts(nullptr, args.to, i, 2000));
    MUST(add_norm(nullptr, {sums, nullptr, args.to.sum, norm, 1e-6f, n, nullptr, out}));
  }
  MUST(cudaDeviceSynchronize());
  ranks.join();
  const auto got = download(sums, size_t(n) * hidden);
  bool good = wrong == 0 && x.word(2) == 0;
  for (float v : got) good &= v == float(layers) * (layers + 1) / 2;
  char name[96];
  snprintf(name, sizeof name, "publish, await, add: %u layers of %u tokens, %u wrong", layers, n, wrong.load());
  expect(good, name);

  // Nobody answers: the wait ends, says so, and the next one does not wait again.
  x.set(0, 0);
  x.set(1, 0);
  const auto begin = std::chrono::steady_clock::now();
  MUST(await_experts(nullptr, args.to, 1, 50));
  for (uint32_t i = 2; i < 20; i++) MUST(await_experts(nullptr, args.to, i, 50));
  MUST(cudaDeviceSynchronize());
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  expect(x.word(2) == 1 && ms > 45 && ms < 500, "await gives up after its time, once");
}

void time_exchange(uint32_t n, double cpu_us) {
  const uint32_t hidden = 7168, used = 8, layers = 60;
  const Exchange x = make_exchange(n, hidden, used);
  float *h = device<float>(size_t(n) * hidden), *sums = device<float>(size_t(n) * hidden),
        *weight = device<float>(n * used);
  int32_t* chosen = device<int32_t>(n * used);
  MUST(cudaMemset(h, 0, size_t(n) * hidden * 4));
  MUST(cudaMemset(sums, 0, size_t(n) * hidden * 4));
  MUST(cudaMemset(weight, 0, n * used * 4));
  MUST(cudaMemset(chosen, 0, n * used * 4));
  uint32_t* arrived = device<uint32_t>(1);
  MUST(cudaMemset(arrived, 0, 4));
  const std::vector<float> ones(hidden, 1.0f);
  const Rows out = make_rows(n, hidden);
  Publish args = {x.view(), h, chosen, weight, nullptr, n, hidden, used, 0, arrived};
  AddNorm add = {sums, nullptr, args.to.sum, upload(ones), 1e-6f, n, nullptr, out};
  const auto measure = [&](int what) {  // 0: all; 1: only the norm, of device memory; 2: no norm
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    AddNorm norm = add;
    if (what == 1) norm.b = h;
    for (uint32_t i = 1; i <= layers; i++) {
      args.number = i;
      if (what != 1) MUST(publish(stream, args));
      if (what != 1) MUST(await_experts(stream, args.to, i, 1000));
      if (what != 2) MUST(add_norm(stream, norm));
    }
    MUST(cudaStreamEndCapture(stream, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t begin, end;
    MUST(cudaEventCreate(&begin));
    MUST(cudaEventCreate(&end));
    std::vector<float> times;
    for (int replay = 0; replay < 20; replay++) {
      x.set(0, 0);
      x.set(1, 0);
      std::thread ranks([&] {
        for (uint32_t i = 1; i <= layers && what != 1; i++) {
          while (x.word(0) < i && !x.word(2)) {}
          if (cpu_us > 0) {
            const auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(int64_t(cpu_us * 1000));
            while (std::chrono::steady_clock::now() < until) {}
          }
          x.set(1, i);
        }
      });
      MUST(cudaEventRecord(begin, stream));
      MUST(cudaGraphLaunch(exec, stream));
      MUST(cudaEventRecord(end, stream));
      MUST(cudaEventSynchronize(end));
      ranks.join();
      float ms;
      MUST(cudaEventElapsedTime(&ms, begin, end));
      times.push_back(1000 * ms / layers);
    }
    std::sort(times.begin(), times.end());
    return double(times[times.size() / 2]);
  };
  const double all = measure(0), norm = measure(1), flags = measure(2);
  printf(
      "exchange n %2u, CPU %3.0f us: layer %.2f us = CPU + norm of device memory (%.2f) + %.2f; without norm CPU + "
      "%.2f\n",
      n, cpu_us, all, norm, all - norm - cpu_us, flags - cpu_us);
}

}  // namespace

int main(int count, char** words) {
  const bool small = count > 1 && !strcmp(words[1], "small");
  cudaDeviceProp properties;
  MUST(cudaGetDeviceProperties(&properties, 0));
  printf("%s\n", properties.name);
  check_exchange(1, small ? 10 : 2000);
  check_exchange(5, small ? 10 : 500);
  if (small) return check::done();
  for (double us : {0.0, 50.0, 400.0}) time_exchange(1, us);
  time_exchange(4, 0);
  time_exchange(16, 0);
  return check::done();
}
