// Threads of the CPU with the routed experts of a model, and a device that runs the rest: what the checks of both need.
#pragma once
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "../../engine/exchange.h"
#include "../../native/cpu.h"
#include "../../native/session.h"
#include "random_model.cuh"

namespace check {

using cuda::DeviceModel;

constexpr uint32_t kPageTokens = 64;

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The fastest table of this CPU.
inline const char* table() {
  for (int i = 0; i < kernel_count(); i++)
    if (cpu_runs(kernels_at(i))) return kernels_at(i).name;
  return "scalar";
}

inline bool is_routed(Slot slot) { return slot >= Slot::ExpertGate && slot <= Slot::ExpertDown; }

// As many ranks as CPUs are pinned to one each, so the thread that asks them must sleep while it waits.
class Ranks {
 public:
  // `bytes_of(slot, layer, expert)` are a whole matrix.
  template <typename BytesOf>
  Ranks(const ModelConfig& c, Limits limits, uint32_t threads, const Types& types, BytesOf bytes_of)
      : layers_(c.layers - c.dense_layers),
        session_(c, experts_of(limits, threads), cpus_of(threads), [this] { on_heard(); }) {
    std::vector<uint64_t> made(threads, 0);
    for_each_matrix(c, [&](Slot slot, uint32_t layer, MatrixShape shape) {
      for (uint32_t r = 0; r < threads && is_routed(slot); r++) {
        const DType type = type_of(types, slot);
        const uint64_t row = row_bytes(type, shape.cols);
        const Range own = rank_range(shape.rows, r, threads, kRowMultiple);
        bindings_.push_back({slot, layer, r, type, shape, own, row, {}});
        for (uint32_t expert = 0; expert < shape.count; expert++) {
          bindings_.back().offsets.push_back(static_cast<double>(made[r]));
          made[r] = (made[r] + own.size() * row + 63) / 64 * 64;
        }
      }
    });
    if (!session_.allocate(made) || session_.create(table()) != Status::Ok) must("no room for the ranks");
    for (const Binding& b : bindings_) {
      const Bound bound = session_.bind(b.rank, b.slot, b.layer, b.type, b.own.begin, b.own.size(), b.shape.cols, kMade,
                                        b.offsets.data(), b.shape.count);
      if (bound != Bound::Ok) must("a binding was refused");
    }
    // Loading touches every page from its rank's own thread.
    if (!session_.start()) must("no threads");
    finish();
    std::vector<std::thread> writers;
    for (uint32_t r = 0; r < threads; r++)
      writers.emplace_back([&, r] {
        for (const Binding& b : bindings_)
          for (uint32_t expert = 0; expert < b.shape.count && b.rank == r; expert++)
            session_.write_made(r, static_cast<uint64_t>(b.offsets[expert]),
                                bytes_of(b.slot, b.layer, expert) + b.own.begin * b.row, b.own.size() * b.row);
      });
    for (std::thread& writer : writers) writer.join();
  }

  // Shows the device where the experts lie; it will pin that memory.
  void attach(DeviceModel& device) const {
    for (const Binding& b : bindings_) {
      const Area& made = *session_.made()[b.rank];
      const std::vector<uint64_t> offsets(b.offsets.begin(), b.offsets.end());
      must(device.attach_experts(
          b.layer, b.slot, {b.type, b.own.begin, b.own.size(), b.shape.cols, made.base(), made.bytes(), offsets}));
    }
  }

  // The ranks serve a step; the device may start.
  void serve(uint32_t tokens) {
    if (engine_begin_experts(session_.engine(), tokens) != Status::Ok) must("too many tokens");
    session_.step();
  }

  // Waits asleep. When the last rank was done, in seconds().
  double finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    expected_++;
    heard_.wait(lock, [this] { return finished_ >= expected_; });
    return finished_at_;
  }

  // Seconds of the experts alone: all layers of a step are handed over at once, so that no rank waits for anyone but the
  // others. Each computes what `exchange()` holds.
  double alone(uint32_t tokens) {
    serve(tokens);
    std::this_thread::sleep_for(std::chrono::microseconds(300));  // until all are awake
    const double begin = seconds();
    __atomic_store_n(&exchange().asked.value, layers_, __ATOMIC_RELEASE);
    return finish() - begin;
  }

  static std::vector<int32_t> cpus_of(uint32_t threads) {
    std::vector<int32_t> cpus;
    for (uint32_t i = 0; i < threads && threads <= std::thread::hardware_concurrency(); i++)
      cpus.push_back(static_cast<int32_t>(i));
    return cpus;
  }

  Exchange& exchange() { return *engine_exchange(session_.engine()); }

 private:
  struct Binding {
    Slot slot;
    uint32_t layer, rank;
    DType type;
    MatrixShape shape;
    Range own;
    uint64_t row;  // bytes
    std::vector<double> offsets;
  };

  void on_heard() {
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_ = session_.finished();
    finished_at_ = seconds();
    heard_.notify_one();
  }

  static Limits experts_of(Limits limits, uint32_t threads) {
    limits.ranks = threads;
    limits.spins = threads <= std::thread::hardware_concurrency() ? 20'000 : 0;
    limits.experts_only = 1;
    limits.taps = 0;
    return limits;
  }

  uint32_t layers_;
  std::vector<Binding> bindings_;
  std::mutex mutex_;
  std::condition_variable heard_;
  int32_t expected_ = 0, finished_ = 0;
  double finished_at_ = 0;
  Session session_;  // last: its threads use the others
};

inline Limits limits_of(uint32_t batch, uint32_t context) {
  Limits l = {};
  l.ranks = 1;
  l.batch_tokens = l.batch_sequences = batch;
  l.batch_outputs = std::min(batch, 16u);
  l.page_tokens = kPageTokens;
  l.pages = batch * context / kPageTokens;
  l.context = context;
  return l;
}

// `n` sequences with one token each at `position`, or one with n tokens that end there.
inline void fill(StepBlock& block, const ModelConfig& c, uint32_t n, uint32_t position, bool prompt, uint32_t seed) {
  block.tokens_count = n;
  block.outputs_count = std::min(n, 16u);
  block.sequences_count = prompt ? 1 : n;
  for (uint32_t t = 0; t < n; t++) {
    block.tokens[t] = static_cast<int32_t>((seed * 7919 + t * 104729) % c.vocabulary);
    block.positions[t] = static_cast<int32_t>(prompt ? position + 1 - n + t : position);
    block.sequences[t] = static_cast<int32_t>(prompt ? 0 : t);
    if (t < block.outputs_count) block.outputs[t] = static_cast<int32_t>(n - block.outputs_count + t);
  }
  for (uint32_t s = 0; s < block.sequences_count; s++)
    for (uint32_t p = 0; p < block.table_stride; p++)
      block.page_tables[s * block.table_stride + p] = static_cast<int32_t>(s * block.table_stride + p);
}

// `resident` experts of each layer find room on the device, whose layers are divided into `parts`.
inline std::unique_ptr<DeviceModel> device_beside(const ModelConfig& c, const Limits& limits, Ranks* ranks,
                                                  uint32_t resident, uint32_t parts = 1) {
  cuda::ModelOptions options = {c, limits, parts_of(c, parts), std::vector<int32_t>(c.layers, 0), false, 2000};
  for (uint32_t layer = c.dense_layers; layer < c.layers; layer++)
    options.resident[layer] = static_cast<int32_t>(resident);
  must(DeviceModel::refusal(options));
  auto device = std::make_unique<DeviceModel>(options);
  must(device->open());
  if (!ranks) return device;
  Exchange& x = ranks->exchange();
  uint8_t* base = reinterpret_cast<uint8_t*>(&x);
  const auto at = [&](const void* what) { return static_cast<uint64_t>(static_cast<const uint8_t*>(what) - base); };
  must(device->attach_exchange(
      base, x.bytes, {at(&x.asked), at(&x.done), at(&x.failed), at(x.h), at(x.chosen), at(x.weight), at(x.sum)}));
  return device;
}

// Seconds of a step.
inline double step(DeviceModel& device, Ranks* ranks, uint32_t n) {
  std::string failure;
  const double begin = seconds();
  if (ranks) ranks->serve(n);
  device.step(false, &failure);
  must(failure);
  if (ranks) ranks->finish();
  return seconds() - begin;
}

}  // namespace check
