// Streamed experts: sums against doubles, from every kind of host memory and beside resident experts, and the share of the
// bus that a prompt of 32k tokens gets. `streaming small` leaves the times out.
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <numeric>
#include <thread>

#include "../../native/cuda/products.h"
#include "../../native/cuda/stages.h"
#include "../../native/cuda/streaming.h"
#include "../../native/memory.h"
#include "random_model.cuh"
#include "streaming.cuh"

using namespace perigee;
using namespace perigee::cuda;
using namespace check;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Resident matrices of one layer with room for `slots` experts.
struct Residents {
  Matrix of[3];
  std::vector<int32_t> slot_of;
  int32_t* on_device;
  // `on_device` follows when this is called.
  ResidentExperts view() const {
    MUST(cudaMemcpy(on_device, slot_of.data(), slot_of.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    return {&of[0], &of[1], &of[2], slot_of.data(), on_device};
  }
  void pack_expert(const ExpertSet (&sets)[3], uint32_t expert, uint32_t slot) {
    slot_of[expert] = static_cast<int32_t>(slot);
    for (uint32_t m = 0; m < 3; m++) {
      const size_t bytes = sets[m].bytes.size() / slot_of.size();
      const uint8_t* at = sets[m].bytes.data() + expert * bytes;
      MUST(pack(nullptr, of[m], slot, upload(std::vector<uint8_t>(at, at + bytes))));
    }
    MUST(cudaDeviceSynchronize());
  }
};

Residents make_residents(const ExpertSet (&sets)[3], uint32_t slots, uint32_t experts) {
  Residents r;
  for (int m = 0; m < 3; m++) {
    const uint64_t stride = packed_bytes(sets[m].type, sets[m].rows, sets[m].cols);
    r.of[m] = {sets[m].type, sets[m].rows, sets[m].cols, slots, stride, device<uint8_t>(stride * slots)};
  }
  r.slot_of.assign(experts, -1);
  r.on_device = device<int32_t>(experts);
  return r;
}

// `tiny`: one layer of each source, for the sanitizers.
void check_sums(bool tiny) {
  const uint32_t layers = 4, used = 4, width = 256;
  const uint32_t experts = tiny ? 9 : 21, hidden = tiny ? 256 : 512, tokens = tiny ? 20 : 60;
  const Source sources[layers] = {Source::Pinned, Source::File, Source::Staged, Source::Pinned};
  const DType types[layers][3] = {{DType::Q4_K, DType::Q4_K, DType::Q6_K},
                                  {DType::Q8_0, DType::Q4_K, DType::Q8_0},
                                  {DType::Q6_K, DType::Q6_K, DType::Q4_K},
                                  {DType::BF16, DType::Q8_0, DType::BF16}};
  ExpertStream stream({layers, experts, used, hidden, width, tokens});
  std::vector<std::vector<ExpertSet>> all;
  std::vector<Residents> residents(layers);
  for (uint32_t l = 0; l < layers; l++) {
    const ExpertSet sets[3] = {make_experts(types[l][0], experts, width, hidden),
                               make_experts(types[l][1], experts, width, hidden),
                               make_experts(types[l][2], experts, hidden, width)};
    for (uint32_t m = 0; m < 3; m++) attach(stream, l, static_cast<ExpertMatrix>(m), sets[m], experts, sources[l]);
    residents[l] = make_residents(sets, 5, experts);
    if (l == 0 || l == 2) stream.set_resident(l, residents[l].view());
    all.push_back({sets[0], sets[1], sets[2]});
  }
  MUST(stream.start());
  cudaStream_t s;
  MUST(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  const auto check = [&](uint32_t layer, int32_t next, const RoutedStep& step, const char* what) {
    MUST(cudaMemset(step.on_device.sum, 0x7f, size_t(step.n) * hidden * 4));
    MUST(stream.run(s, layer, next, step.on_device));
    MUST(cudaStreamSynchronize(s));
    const ExpertSet sets[3] = {all[layer][0], all[layer][1], all[layer][2]};
    const double error = check::nmse(download(step.on_device.sum, size_t(step.n) * hidden), routed(step, sets, width));
    char name[128];
    snprintf(name, sizeof name, "layer %u, %s: NMSE %.1e", layer, what, error);
    expect(error < 5e-5, name);
  };
  const RoutedStep many = make_step(tokens, used, hidden, experts, false),
                   some = make_step(tokens / 2, used, hidden, experts, true),
                   one = make_step(1, used, hidden, experts, false);
  check(0, 1, many, "pinned");
  check(1, 2, many, "a file");
  check(2, ExpertStream::kNoLayer, some, "staged, few experts");
  if (tiny) return;
  check(3, 2, some, "pinned, bf16");
  check(1, 2, one, "another layer than was promised");
  check(2, 0, many, "staged, in advance");
  for (uint32_t e : {3u, 20u, 7u}) {  // two of them at once in the end: one is replaced
    MUST(stream.place(0, e, e % 4));
    MUST(stream.place(2, e, e % 4));
    for (uint32_t l : {0u, 2u}) {
      for (int32_t& slot : residents[l].slot_of)
        if (slot == int32_t(e % 4)) slot = -1;
      residents[l].slot_of[e] = e % 4;
    }
    check(0, 2, many, "with a resident more than promised");
    check(2, 0, many, "staged beside residents");
  }
  double speed;
  MUST(stream.measure(&speed));
  expect(speed > 0, "a layer's copies are timed");
  check(0, ExpertStream::kNoLayer, some, "after measuring");

  // All of a layer's experts on the device, and no host memory at all.
  ExpertStream resident({layers, experts, used, hidden, width, tokens});
  Residents every = make_residents({all[0][0], all[0][1], all[0][2]}, experts, experts);
  for (uint32_t e = 0; e < experts; e++) every.pack_expert({all[0][0], all[0][1], all[0][2]}, e, experts - 1 - e);
  resident.set_resident(0, every.view());
  MUST(resident.start());
  MUST(cudaMemset(many.on_device.sum, 0, size_t(tokens) * hidden * 4));
  MUST(resident.run(s, 0, ExpertStream::kNoLayer, many.on_device));
  MUST(cudaStreamSynchronize(s));
  const ExpertSet sets[3] = {all[0][0], all[0][1], all[0][2]};
  expect(check::nmse(download(many.on_device.sum, size_t(tokens) * hidden), routed(many, sets, width)) < 5e-5,
         "all resident, nothing attached");
}

// What experts that lie on the device give, all of them or some, where the others are left to the ranks.
void check_residents(DType gate_up, DType down, uint32_t hidden, uint32_t width) {
  const uint32_t experts = 19, used = 4, tokens = 60;
  const auto make = [&](DType type, uint32_t rows, uint32_t cols) {
    return ExpertSet{type, rows, cols, check::random_rows(type, experts * rows, cols, experts * rows, random_bits)};
  };
  const ExpertSet sets[3] = {make(gate_up, width, hidden), make(gate_up, width, hidden), make(down, hidden, width)};
  double worst = 0;
  for (const bool some : {false, true}) {
    Residents residents = make_residents(sets, some ? 9 : experts, experts);
    for (uint32_t e = 0; e < (some ? 9 : experts); e++)
      residents.pack_expert(sets, some ? 2 * e : e, (e * 4) % (some ? 9 : experts));
    ExpertStream stream({1, experts, used, hidden, width, tokens});
    stream.set_resident(0, residents.view());
    MUST(stream.start());
    for (const bool few_experts : {false, true}) {
      RoutedStep step = make_step(few_experts ? tokens : 37, used, hidden, experts, few_experts);
      step.on_device.only_residents = some;
      MUST(cudaMemset(step.on_device.sum, 0x7f, size_t(step.n) * hidden * 4));
      MUST(stream.run(nullptr, 0, ExpertStream::kNoLayer, step.on_device));
      for (int32_t& expert : step.chosen)
        if (expert >= 0 && residents.slot_of[expert] < 0) expert = -1;
      worst = std::max(worst,
                       check::nmse(download(step.on_device.sum, size_t(step.n) * hidden), routed(step, sets, width)));
    }
  }
  char line[128];
  snprintf(line, sizeof line, "resident experts of types %u and %u, %u x %u: NMSE %.1e", uint32_t(gate_up),
           uint32_t(down), width, hidden, worst);
  expect(worst < 5e-5, line);
}

// Experts in a file that is cut off: what is gone comes as zeros, by a staging thread as well as by place().
void check_shrunk() {
  const uint32_t experts = 16, used = 4, hidden = 512, width = 256, tokens = 60;
  const ExpertSet up = make_experts(DType::Q8_0, experts, width, hidden),
                  down = make_experts(DType::Q8_0, experts, hidden, width);
  char path[] = "/tmp/perigee-stream-XXXXXX";
  const int file = mkstemp(path);
  for (const ExpertSet* set : {&up, &up, &down})
    if (write(file, set->bytes.data(), set->bytes.size()) != ssize_t(set->bytes.size())) exit(1);
  MappedFile mapped;
  if (mapped.map(path) != 0) exit(1);
  ExpertStream stream({1, experts, used, hidden, width, tokens});
  uint64_t begin = 0;
  for (uint32_t m = 0; m < 3; m++) {
    const ExpertSet& set = m == 2 ? down : up;
    std::vector<uint64_t> offsets(experts);
    for (uint32_t e = 0; e < experts; e++) offsets[e] = begin + e * (set.bytes.size() / experts);
    stream.attach(0, static_cast<ExpertMatrix>(m),
                  {set.type, 0, set.rows, set.cols, mapped.base(), kUnmapped, offsets});
    begin += set.bytes.size();
  }
  Residents residents = make_residents({up, up, down}, 1, experts);
  stream.set_resident(0, residents.view());
  MUST(stream.start());
  const RoutedStep step = make_step(tokens, used, hidden, experts, false);
  if (ftruncate(file, 8192) != 0) exit(1);
  MUST(stream.run(nullptr, 0, ExpertStream::kNoLayer, step.on_device));
  MUST(stream.place(0, experts - 1, 0));
  MUST(cudaDeviceSynchronize());
  const std::vector<float> sum = download(step.on_device.sum, size_t(tokens) * hidden);
  expect(mapped.lost_at.load() == 8192 && std::all_of(sum.begin(), sum.end(), [](float x) { return x == 0; }),
         "experts of a file that was cut off are zeros, and it is known");
  close(file);
  unlink(path);
}

// --- Kimi K2's width ---------------------------------------------------------------------------------------------------------

constexpr uint32_t kHidden = 7168, kWidth = 2048, kExperts = 384, kUsed = 8, kLayers = 4;

// Q4_K experts of one layer in host memory, filled by many threads; every layer of the check reads the same ones.
struct HostLayer {
  uint8_t* memory;
  uint64_t matrix, bytes;
};
HostLayer make_host_layer() {
  HostLayer h = {nullptr, kWidth * uint64_t(row_bytes(DType::Q4_K, kHidden)), 0};
  h.bytes = 3 * h.matrix * kExperts;
  void* at = mmap(nullptr, h.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(at, h.bytes, MADV_HUGEPAGE);
  h.memory = static_cast<uint8_t*>(at);
  std::vector<uint8_t> pattern(h.matrix);
  fill_blocks(DType::Q4_K, pattern.data(), pattern.size());
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; t++)
    threads.emplace_back([&, t] {
      for (uint64_t m = t; m < 3 * kExperts; m += 16) memcpy(h.memory + m * h.matrix, pattern.data(), h.matrix);
    });
  for (auto& t : threads) t.join();
  return h;
}

// As a GGUF file has them: all gates, all ups, all downs; `ranks` ranks with equal shares of the rows.
void attach_layer(ExpertStream& stream, uint32_t layer, const HostLayer& h, uint32_t ranks, bool staged) {
  for (uint32_t m = 0; m < 3; m++) {
    const uint32_t rows = m == 2 ? kHidden : kWidth, cols = m == 2 ? kWidth : kHidden;
    for (uint32_t r = 0; r < ranks; r++) {
      std::vector<uint64_t> offsets(kExperts);
      for (uint32_t e = 0; e < kExperts; e++)
        offsets[e] = (uint64_t(m) * kExperts + e) * h.matrix + h.matrix / ranks * r;
      stream.attach(
          layer, static_cast<ExpertMatrix>(m),
          {DType::Q4_K, rows / ranks * r, rows / ranks, cols, h.memory, staged ? kUnmapped : h.bytes, offsets});
    }
  }
}

void time_streaming() {
  double begin = now();
  const HostLayer h = make_host_layer();
  printf("filled %.2f GB in %.2f s\n", h.bytes / 1e9, now() - begin);
  const uint32_t tokens = 32768;
  RoutedMany step = {device<bf16>(size_t(tokens) * kHidden), nullptr, nullptr, tokens,
                     device<float>(size_t(tokens) * kHidden)};
  check::fill_normal(const_cast<bf16*>(step.x), size_t(tokens) * kHidden, 1, 3);
  std::vector<int32_t> chosen(size_t(tokens) * kUsed);
  for (uint32_t t = 0; t < tokens; t++) {
    const uint32_t first = random_bits();
    for (uint32_t k = 0; k < kUsed; k++) chosen[t * kUsed + k] = (first + k * 47) % kExperts;
  }
  step.chosen = upload(chosen);
  step.weight = upload(std::vector<float>(chosen.size(), 0.3f));
  cudaStream_t s;
  MUST(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));

  Gemm other = {};
  other.a = step.x;
  other.b = step.x;
  other.k = other.n = other.a_stride = other.b_stride = other.y_stride = kHidden;
  other.y_wide = device<bf16>(size_t(tokens) * kHidden);

  for (const bool staged : {false, true}) {
    ExpertStream stream({kLayers, kExperts, kUsed, kHidden, kWidth, tokens});
    for (uint32_t l = 0; l < kLayers; l++) attach_layer(stream, l, h, 4, staged);
    std::vector<Matrix> packed;
    std::vector<int32_t> slot_of(kExperts, -1);
    int32_t* on_device = device<int32_t>(kExperts);
    const uint64_t strides[2] = {packed_bytes(DType::Q4_K, kWidth, kHidden),
                                 packed_bytes(DType::Q4_K, kHidden, kWidth)};
    for (int m = 0; m < 3 && !staged; m++)
      packed.push_back({DType::Q4_K, m == 2 ? kHidden : kWidth, m == 2 ? kWidth : kHidden, kExperts, strides[m / 2],
                        device<uint8_t>(strides[m / 2] * kExperts)});
    if (!staged) stream.set_resident(kLayers - 1, {&packed[0], &packed[1], &packed[2], slot_of.data(), on_device});
    begin = now();
    MUST(stream.start());
    printf("%s: start, with pinning: %.2f s\n", staged ? "staged" : "pinned", now() - begin);
    double plain = 0;
    if (!staged) {
      uint8_t* to = device<uint8_t>(1 << 30);
      MUST(cudaMemcpyAsync(to, h.memory, 1 << 30, cudaMemcpyHostToDevice, s));
      MUST(cudaStreamSynchronize(s));
      begin = now();
      for (int i = 0; i < 4; i++)
        MUST(cudaMemcpyAsync(to, h.memory + (uint64_t(i) << 30), 1 << 30, cudaMemcpyHostToDevice, s));
      MUST(cudaStreamSynchronize(s));
      plain = 4.0 * (1 << 30) / (now() - begin);
      MUST(cudaFree(to));
      printf("plain cudaMemcpyAsync of 1 GiB pieces: %.1f GB/s\n", plain / 1e9);
    }
    double speed;
    MUST(stream.measure(&speed));
    printf("measure(): %.1f GB/s\n", speed / 1e9);
    for (uint32_t n : {32768u, 4096u, 1024u}) {
      if (staged && n < 32768) continue;
      step.n = n;
      other.m = n;
      std::vector<double> times;
      double last = 0;
      MUST(stream.run(s, 0, 1, step));
      for (uint32_t i = 1; i < 4; i++) {
        MUST(cudaStreamSynchronize(s));
        last = now();
        MUST(stream.run(s, i % 3, (i + 1) % 3, step));
        MUST(cudaStreamSynchronize(s));
        times.push_back(now() - last);
      }
      // Without stopping between layers, as a prompt runs; and with other work of 50 ms a layer at 32k tokens.
      const auto on = [&](uint32_t products) {
        const double from = now();
        for (uint32_t i = 0; i < 5; i++) {
          for (uint32_t product = 0; product < products; product++) MUST(gemm(s, other));
          MUST(stream.run(s, (i + 1) % 3, i < 4 ? int32_t((i + 2) % 3) : ExpertStream::kNoLayer, step));
        }
        MUST(cudaStreamSynchronize(s));
        return (now() - from) / 5;
      };
      const double layer = on(0), busy = on(8);
      std::sort(times.begin(), times.end());
      printf(
          "%5u tokens: layer %.1f ms running on, %.1f with other work, %.1f alone = %.1f GB/s (%.0f %% of the plain "
          "copy)\n",
          n, 1e3 * layer, 1e3 * busy, 1e3 * times[1], h.bytes / layer / 1e9,
          plain > 0 ? 100 * h.bytes / layer / plain : 0.0);
      if (!staged && n == 32768)
        check::figure("experts streamed for 32,768 tokens, share of the bus", 100 * h.bytes / layer / plain, "%",
                      check::Asked::AtLeast, 70);
    }
    if (staged) continue;
    begin = now();
    for (uint32_t e = 0; e < kExperts; e++) MUST(stream.place(kLayers - 1, e, e));
    printf("place: %.0f us an expert\n", 1e6 * (now() - begin) / kExperts);
    std::iota(slot_of.begin(), slot_of.end(), 0);
    MUST(cudaMemcpy(on_device, slot_of.data(), kExperts * sizeof(int32_t), cudaMemcpyHostToDevice));
    for (uint32_t n : {32768u, 16384u, 8192u, 4096u, 2048u, 1024u, 512u, 128u, 32u}) {
      step.n = n;
      MUST(stream.run(s, kLayers - 1, ExpertStream::kNoLayer, step));
      MUST(cudaStreamSynchronize(s));
      begin = now();
      for (int i = 0; i < 2; i++) MUST(stream.run(s, kLayers - 1, ExpertStream::kNoLayer, step));
      MUST(cudaStreamSynchronize(s));
      const double layer = (now() - begin) / 2;
      printf("%5u tokens, all resident: layer %.2f ms = %.0f TFLOP/s, weights at %.0f GB/s\n", n, 1e3 * layer,
             6.0 * n * kUsed * kHidden * kWidth / layer / 1e12, h.bytes / layer / 1e9);
    }
    for (Matrix& m : packed) MUST(cudaFree(m.packed));
  }
}

}  // namespace

int main(int count, char** words) {
  cudaDeviceProp properties;
  MUST(cudaGetDeviceProperties(&properties, 0));
  printf("%s\n", properties.name);
  int read_only;
  MUST(cudaDeviceGetAttribute(&read_only, cudaDevAttrHostRegisterReadOnlySupported, 0));
  printf("read-only registration: %d\n", read_only);
  const std::vector<uint8_t> page(1 << 20);
  uint8_t* file = host_memory(Source::File, page.size(), page.data());
  printf("a mapped file, pinned for reading: %s\n",
         cudaGetErrorString(cudaHostRegister(file, page.size(), cudaHostRegisterReadOnly)));
  cudaGetLastError();
  MUST(prepare_products(0));
  const bool tiny = count > 1 && !strcmp(words[1], "tiny");
  check_sums(tiny);
  check_residents(DType::Q4_K, DType::Q6_K, 512, 256);
  if (tiny) return check::done();
  for (const DType type : {DType::Q4_0, DType::Q5_0, DType::Q8_0, DType::Q5_1, DType::BF16, DType::F32})
    check_residents(type, type, 416, 288);
  for (const DType type : {DType::Q5_K, DType::Q6_K}) check_residents(type, DType::Q5_0, 512, 256);
  check_shrunk();
  if (count < 2) time_streaming();
  return check::done();
}
