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

bool small = false;  // under the sanitizer, where nothing is quick

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

// What a layer's router and the norm behind it take; weights of `copies` layers, so that they come from memory.
struct Chain {
  uint32_t n, hidden = 7168, used = 8, experts = 384, copies;
  Exchange x;
  float *h, *w, *norm, *sums, *device_sum;
  int32_t* resident;
  Router router;
  Rows out;

  Chain(uint32_t tokens, uint32_t layers) : n(tokens), copies(layers), x(make_exchange(tokens, 7168, 8)) {
    h = upload(normal(size_t(n) * hidden));
    w = device<float>(size_t(copies) * experts * hidden);
    check::fill_normal(w, size_t(copies) * experts * hidden, 0.01f, 4);
    norm = upload(std::vector<float>(hidden, 1.0f));
    sums = upload(std::vector<float>(size_t(n) * hidden));
    device_sum = upload(std::vector<float>(size_t(n) * hidden));
    std::vector<int32_t> slots(experts, -1);
    for (uint32_t e = 0; e < experts; e += 3) slots[e] = e / 3;
    resident = upload(slots);
    router = {w,
              DType::F32,
              upload(normal(experts, 0.05f)),
              h,
              n,
              hidden,
              experts,
              used,
              1,
              1,
              true,
              true,
              2.5f,
              device<float>(size_t(n) * experts),
              device<int32_t>(n * used),
              device<float>(n * used),
              upload(std::vector<uint32_t>(experts)),
              upload(std::vector<uint32_t>(1))};
    out = make_rows(n, hidden);
    out.wide = nullptr;
  }

  enum Form { OnDevice, Apart, HandedBetween, Together };
  // Routes, hands layer `number` over, waits for it and adds.
  void enqueue(cudaStream_t stream, uint32_t number, Form form) {
    router.w = w + size_t(number % copies) * experts * hidden;
    router.hand_over = {};
    if (form >= HandedBetween) router.hand_over = {x.view(), number, resident};
    MUST(route(stream, router));
    AddNorm add = {sums, nullptr, form == OnDevice ? device_sum : x.view().sum, norm, 1e-6f, n, nullptr, out};
    if (form == Apart)
      MUST(publish(stream,
                   {x.view(), h, router.chosen, router.weight, resident, n, hidden, used, number, router.arrived}));
    if (form == Apart || form == HandedBetween) MUST(await_experts(stream, x.view(), number, 2000));
    if (form == Together) add.b_after = {x.view(), number, 2000};
    MUST(add_norm(stream, add));
  }
};

void check_exchange(uint32_t n, uint32_t layers, Chain::Form form) {
  Chain c(n, 1);
  const Exchange& x = c.x;
  MUST(route(nullptr, c.router));
  const auto h = download(c.h, size_t(n) * c.hidden), weight = download(c.router.weight, n * c.used);
  auto chosen = download(c.router.chosen, n * c.used);
  for (int32_t& e : chosen) e = e % 3 == 0 ? -1 : e;
  std::atomic<uint32_t> wrong = 0;
  std::thread ranks([&] {
    for (uint32_t i = 1; i <= layers; i++) {
      while (x.word(0) < i && !x.word(2)) {}
      wrong += memcmp(x.at<float>(x.h()), h.data(), h.size() * 4) != 0;
      wrong += memcmp(x.at<int32_t>(x.chosen()), chosen.data(), chosen.size() * 4) != 0;
      wrong += memcmp(x.at<float>(x.weight()), weight.data(), weight.size() * 4) != 0;
      memset(x.at<float>(x.h()), 0, h.size() * 4);
      for (size_t j = 0; j < size_t(n) * c.hidden; j++) x.at<float>(x.sum())[j] = float(i);
      x.set(1, i);
    }
  });
  for (uint32_t i = 1; i <= layers; i++) c.enqueue(nullptr, i, form);
  MUST(cudaDeviceSynchronize());
  ranks.join();
  const auto got = download(c.sums, size_t(n) * c.hidden);
  bool good = wrong == 0 && x.word(2) == 0;
  for (float v : got) good &= v == float(layers) * (layers + 1) / 2;
  char name[96];
  snprintf(name, sizeof name, "%u layers of %u tokens, %s: %u wrong", layers, n,
           form == Chain::Apart ? "stages of their own" : "within router and norm", wrong.load());
  expect(good, name);

  // Nobody answers: the wait ends, says so, and the next one does not wait again.
  x.set(0, 0);
  x.set(1, 0);
  const auto begin = std::chrono::steady_clock::now();
  for (uint32_t i = 1; i < 20; i++) MUST(await_experts(nullptr, x.view(), i, 50));
  for (uint32_t i = 1; i < 20; i++) c.enqueue(nullptr, i, form);
  MUST(cudaDeviceSynchronize());
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  expect(x.word(2) == 1 && ms > 45 && (ms < 500 || small), "a wait gives up after its time, once");
}

void time_exchange(uint32_t n, double cpu_us) {
  constexpr uint32_t kLayers = 60;
  Chain c(n, 28);  // 308 MB: five times the cache
  const Exchange& x = c.x;
  const auto measure = [&](Chain::Form form) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (uint32_t i = 1; i <= kLayers; i++) c.enqueue(stream, i, form);
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
        for (uint32_t i = 1; i <= kLayers && form != Chain::OnDevice; i++) {
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
      times.push_back(1000 * ms / kLayers);
    }
    std::sort(times.begin(), times.end());
    return double(times[times.size() / 2]);
  };
  const double alone = measure(Chain::OnDevice), apart = measure(Chain::Apart), handed = measure(Chain::HandedBetween),
               together = measure(Chain::Together);
  printf(
      "n %2u, CPU %3.0f us: route and norm %.2f us; beyond them and the CPU: %.2f by stages of their own, %.2f handed "
      "over within, %.2f awaited within as well\n",
      n, cpu_us, alone, apart - alone - cpu_us, handed - alone - cpu_us, together - alone - cpu_us);
}

}  // namespace

int main(int count, char** words) {
  small = count > 1 && !strcmp(words[1], "small");
  cudaDeviceProp properties;
  MUST(cudaGetDeviceProperties(&properties, 0));
  printf("%s\n", properties.name);
  for (const Chain::Form form : {Chain::Apart, Chain::Together}) {
    check_exchange(1, small ? 10 : 2000, form);
    check_exchange(3, small ? 10 : 500, form);
    check_exchange(7, small ? 10 : 500, form);
  }
  if (small) return check::done();
  for (double us : {0.0, 50.0, 400.0}) time_exchange(1, us);
  for (uint32_t n : {2u, 4u, 8u, 16u}) time_exchange(n, 0);
  return check::done();
}
