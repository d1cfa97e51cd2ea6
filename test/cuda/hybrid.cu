// A model on the device whose routed experts are computed by threads of the CPU: logits beside those of the engine alone, and
// the time of a layer of K2's width beside what its experts take without a device. `hybrid small` only compares;
// `hybrid THREADS LAYERS` sets the size.
#include <chrono>
#include <thread>

#include "../../engine/exchange.h"
#include "../../native/cpu.h"
#include "../../native/limits.h"
#include "../../native/session.h"
#include "random_model.cuh"

using namespace perigee;
using cuda::DeviceModel;

namespace {

constexpr uint32_t kPageTokens = 64;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double>& times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// The fastest table of this CPU.
const char* table() {
  for (int i = 0; i < kernel_count(); i++)
    if (cpu_runs(kernels_at(i))) return kernels_at(i).name;
  return "scalar";
}

bool is_routed(Slot slot) { return slot >= Slot::ExpertGate && slot <= Slot::ExpertDown; }

// Threads with the routed experts of a model. `bytes_of(slot, layer, expert)` are a whole matrix.
class Ranks {
 public:
  template <typename BytesOf>
  Ranks(const ModelConfig& c, Limits limits, uint32_t threads, const check::Types& types, BytesOf bytes_of)
      : session_(c, experts_of(limits, threads), cpus_of(threads), [] {}) {
    struct Part {
      Slot slot;
      uint32_t layer, expert;
      uint64_t from, to, bytes;
    };
    std::vector<std::vector<Part>> parts(threads);
    std::vector<uint64_t> made(threads, 0);
    const auto for_each_routed = [&](auto use) {
      check::for_each_matrix(c, [&](Slot slot, uint32_t layer, MatrixShape shape) {
        for (uint32_t r = 0; r < threads && is_routed(slot); r++) use(slot, layer, shape, r);
      });
    };
    std::vector<std::vector<double>> offsets;
    for_each_routed([&](Slot slot, uint32_t layer, MatrixShape shape, uint32_t r) {
      const Range own = rank_range(shape.rows, r, threads, kRowMultiple);
      const uint64_t row = row_bytes(check::type_of(types, slot), shape.cols);
      offsets.emplace_back();
      for (uint32_t expert = 0; expert < shape.count; expert++) {
        parts[r].push_back({slot, layer, expert, own.begin * row, made[r], own.size() * row});
        offsets.back().push_back(static_cast<double>(made[r]));
        made[r] = (made[r] + own.size() * row + 63) / 64 * 64;
      }
    });
    if (!session_.allocate(made) || session_.create(table()) != Status::Ok) check::must("no room for the ranks");
    size_t next = 0;
    for_each_routed([&](Slot slot, uint32_t layer, MatrixShape shape, uint32_t r) {
      const Range own = rank_range(shape.rows, r, threads, kRowMultiple);
      const Bound bound = session_.bind(r, slot, layer, check::type_of(types, slot), own.begin, own.size(), shape.cols,
                                        kMade, offsets[next].data(), shape.count);
      if (bound != Bound::Ok) check::must("a binding was refused");
      next++;
    });
    if (!session_.start()) check::must("no threads");
    finish();
    std::vector<std::thread> writers;
    for (uint32_t r = 0; r < threads; r++)
      writers.emplace_back([&, r] {
        for (const Part& p : parts[r])
          session_.write_made(r, p.to, bytes_of(p.slot, p.layer, p.expert) + p.from, p.bytes);
      });
    for (std::thread& writer : writers) writer.join();
  }

  // The ranks serve a step; the device may start.
  void serve(uint32_t tokens) {
    if (engine_begin_experts(session_.engine(), tokens) != Status::Ok) check::must("too many tokens");
    session_.step();
  }
  void finish() {
    expected_++;
    while (session_.finished() < expected_) __builtin_ia32_pause();
  }
  Exchange& exchange() { return *engine_exchange(session_.engine()); }

 private:
  static Limits experts_of(Limits limits, uint32_t threads) {
    limits.ranks = threads;
    limits.spins = threads <= std::thread::hardware_concurrency() ? 20'000 : 0;
    limits.experts_only = 1;
    limits.taps = 0;
    return limits;
  }
  static std::vector<int32_t> cpus_of(uint32_t threads) {
    std::vector<int32_t> cpus;
    for (uint32_t i = 0; i < threads && threads <= std::thread::hardware_concurrency(); i++)
      cpus.push_back(static_cast<int32_t>(i));
    return cpus;
  }

  Session session_;
  int32_t expected_ = 0;
};

ModelConfig k2_config(uint32_t moe_layers) {
  ModelConfig c = check::small_config(1 + moe_layers);
  check::widen_to_k2(c);
  c.vocabulary = 4096;  // the head is measured elsewhere
  return c;
}

Limits limits_of(uint32_t batch, uint32_t context) {
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
void fill(StepBlock& block, const ModelConfig& c, uint32_t n, uint32_t position, bool prompt, uint32_t seed) {
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

// Without ranks all experts are on the device, or with `routed` false left out.
std::unique_ptr<DeviceModel> device_beside(const ModelConfig& c, const Limits& limits, Ranks* ranks,
                                           bool routed = true) {
  cuda::ModelOptions options = {c, limits, {{0, 0, c.layers}}, std::vector<int32_t>(c.layers, 0), false, 2000};
  for (uint32_t layer = c.dense_layers; layer < c.layers && routed && !ranks; layer++)
    options.resident[layer] = static_cast<int32_t>(c.experts);
  check::must(DeviceModel::refusal(options));
  auto device = std::make_unique<DeviceModel>(options);
  check::must(device->open());
  if (!ranks) return device;
  Exchange& x = ranks->exchange();
  uint8_t* base = reinterpret_cast<uint8_t*>(&x);
  const auto at = [&](const void* what) { return static_cast<uint64_t>(static_cast<const uint8_t*>(what) - base); };
  check::must(device->attach_exchange(
      base, x.bytes, {at(&x.asked), at(&x.done), at(&x.failed), at(x.h), at(x.chosen), at(x.weight), at(x.sum)}));
  return device;
}

void step(DeviceModel& device, Ranks* ranks, uint32_t n) {
  std::string failure;
  if (ranks) ranks->serve(n);
  device.step(false, &failure);
  check::must(failure);
  if (ranks) ranks->finish();
}

std::unique_ptr<DeviceModel> loaded(const check::RandomModel& model, const Limits& limits, Ranks* ranks) {
  const ModelConfig& c = model.config;
  auto device = device_beside(c, limits, ranks);
  check::for_each_matrix(c, [&](Slot slot, uint32_t layer, MatrixShape shape) {
    const DType type = check::type_of(model.types, slot);
    for (uint32_t i = 0; i < shape.count && !(ranks && is_routed(slot)); i++)
      check::must(device->upload(slot, layer, type, shape.rows, shape.cols, shape.count, i,
                                 model.matrix(slot, layer, i), shape.rows * row_bytes(type, shape.cols)));
  });
  for (const auto& [key, values] : model.vectors)
    device->set_vector(key.first, key.second, DType::F32, reinterpret_cast<const uint8_t*>(values.data()),
                       values.size() * sizeof(float));
  check::must(device->start());
  return device;
}

// Activations of 8 bits, and what they turn over in a random router, take the device away from the engine whoever computes the
// experts: with ranks it must not be further than without.
void compare(const char* name, const check::Types& types, uint32_t threads) {
  const ModelConfig c = check::small_config(4);
  const Limits limits = limits_of(64, 256);
  const check::RandomModel model(c, types);
  check::OnCpu cpu(model, limits);
  Ranks ranks(c, limits, threads, types,
              [&](Slot slot, uint32_t layer, uint32_t i) { return model.matrix(slot, layer, i); });
  const auto hybrid = loaded(model, limits, &ranks), alone = loaded(model, limits, nullptr);
  std::vector<float> of_hybrid, of_device;
  std::vector<double> wanted;
  struct Asked {
    uint32_t n, position;
    bool prompt;
  };
  std::vector<Asked> steps = {{5, 4, true}, {40, 44, true}};
  for (uint32_t position = 45; position < 75; position++) steps.push_back({1, position, false});
  for (const Asked& asked : steps) {
    StepBlock& there = *engine_step_block(*cpu.engine);
    for (StepBlock* block : {&hybrid->block(), &alone->block(), &there})
      fill(*block, c, asked.n, asked.position, asked.prompt, asked.position);
    engine_forward(*cpu.engine, 0);
    step(*hybrid, &ranks, asked.n);
    step(*alone, nullptr, asked.n);
    const size_t count = size_t{there.outputs_count} * c.vocabulary;
    of_hybrid.insert(of_hybrid.end(), hybrid->block().logits, hybrid->block().logits + count);
    of_device.insert(of_device.end(), alone->block().logits, alone->block().logits + count);
    wanted.insert(wanted.end(), there.logits, there.logits + count);
  }
  const double off = check::nmse(of_hybrid, wanted), yardstick = check::nmse(of_device, wanted);
  char line[160];
  snprintf(line, sizeof line, "%s, %u threads: logits NMSE %.1e, with all experts on the device %.1e", name, threads,
           off, yardstick);
  check::expect(off <= 1.5 * yardstick + 1e-6, line);
}

using Rows = std::map<std::tuple<DType, uint32_t, uint32_t>, std::vector<uint8_t>>;

const uint8_t* rows_of(Rows& made, DType type, const MatrixShape& shape) {
  std::vector<uint8_t>& raw = made[{type, shape.rows, shape.cols}];
  std::mt19937 from(3);
  if (raw.empty()) raw = check::random_rows(type, shape.rows, shape.cols, type == DType::F32 ? shape.rows : 16, from);
  return raw.data();
}

// All but the experts, of a few random rows each.
void load(DeviceModel& device, const ModelConfig& c, const check::Types& types, Rows& made) {
  check::for_each_matrix(c, [&](Slot slot, uint32_t layer, MatrixShape shape) {
    const DType type = check::type_of(types, slot);
    for (uint32_t i = 0; i < shape.count && !is_routed(slot); i++)
      check::must(device.upload(slot, layer, type, shape.rows, shape.cols, shape.count, i, rows_of(made, type, shape),
                                shape.rows * row_bytes(type, shape.cols)));
  });
  const uint32_t lengths[] = {c.hidden, c.hidden, c.hidden, c.q_rank, c.kv_rank, c.experts};
  std::mt19937 from(5);
  std::normal_distribution<float> around(1, 0.1f), small(0, 0.02f);
  for (uint32_t layer = 0; layer < c.layers; layer++) {
    for (uint32_t v = 0; v < static_cast<uint32_t>(Vector::Count); v++) {
      const bool bias = v == static_cast<uint32_t>(Vector::RouterBias);
      std::vector<float> values(lengths[v]);
      for (float& x : values) x = bias ? small(from) : around(from);
      device.set_vector(static_cast<Vector>(v), layer, DType::F32, reinterpret_cast<const uint8_t*>(values.data()),
                        values.size() * sizeof(float));
    }
  }
  check::must(device.start());
}

constexpr uint32_t kWarmUp = 10, kTimed = 40;

// Median seconds of a step. With `choices`, those of the last layer of each step are put there.
double step_time(DeviceModel& device, Ranks* ranks, const ModelConfig& c, uint32_t n,
                 std::vector<std::vector<int32_t>>* choices = nullptr) {
  std::vector<double> times;
  for (uint32_t i = 0; i < kWarmUp + kTimed; i++) {
    fill(device.block(), c, n, 1000 + i % 20, false, i);
    const double before = seconds();
    step(device, ranks, n);
    if (i >= kWarmUp) times.push_back(seconds() - before);
    if (choices && i >= kWarmUp)
      choices->emplace_back(ranks->exchange().chosen, ranks->exchange().chosen + n * c.experts_used);
  }
  return median(times);
}

// Median seconds of a layer's experts asked for by this thread, which does nothing else; each step as one of `choices`.
double experts_time(Ranks& ranks, const ModelConfig& c, uint32_t n, const std::vector<std::vector<int32_t>>& choices) {
  Exchange& x = ranks.exchange();
  std::mt19937 from(9);
  std::normal_distribution<float> normal(0, 1);
  for (size_t i = 0; i < size_t{n} * c.hidden; i++) x.h[i] = normal(from);
  for (uint32_t i = 0; i < n * c.experts_used; i++) x.weight[i] = 0.125f;
  std::vector<double> times;
  for (const std::vector<int32_t>& chosen : choices) {
    ranks.serve(n);
    for (uint32_t number = 1; number <= c.layers - c.dense_layers; number++) {
      memcpy(x.chosen, chosen.data(), chosen.size() * sizeof(int32_t));
      const double before = seconds();
      __atomic_store_n(&x.asked.value, number, __ATOMIC_RELEASE);
      while (__atomic_load_n(&x.done.value, __ATOMIC_ACQUIRE) < number) __builtin_ia32_pause();
      times.push_back(seconds() - before);
    }
    ranks.finish();
  }
  return median(times);
}

void time_layers(uint32_t threads, uint32_t layers) {
  constexpr check::Types types = {DType::Q8_0, DType::Q4_K, DType::Q4_K, DType::Q8_0, DType::Q8_0};
  const ModelConfig c = k2_config(layers);
  const Limits limits = limits_of(16, 2048);
  Rows made;
  check::for_each_matrix(c, [&](Slot slot, uint32_t, MatrixShape shape) {
    rows_of(made, check::type_of(types, slot), shape);  // the writing threads only read
  });
  const double before = seconds();
  Ranks ranks(c, limits, threads, types, [&](Slot slot, uint32_t, uint32_t) {
    return rows_of(made, check::type_of(types, slot), slot_shape(c, slot));
  });
  const double experts = double(c.experts_used) * 3 * c.expert_width * row_bytes(DType::Q4_K, c.hidden);
  printf("%s, %u threads, %u MoE layers of K2's width: %.1f GB of experts in %.1f s\n", table(), threads, layers,
         experts / c.experts_used * c.experts * layers * 1e-9, seconds() - before);
  // Looking for the ranks' answer on a rank's own CPU would hold up that rank, and all others with it.
  pin_to(static_cast<int32_t>(std::thread::hardware_concurrency()) - 1);
  ModelConfig dense = c;
  dense.layers = 1;
  const auto only_dense = device_beside(dense, limits, nullptr, false),
             alone = device_beside(c, limits, nullptr, false), hybrid = device_beside(c, limits, &ranks);
  load(*only_dense, dense, types, made);
  load(*alone, c, types, made);
  load(*hybrid, c, types, made);
  printf("one layer, us:  n   CPU alone  (GB/s)   GPU alone   hybrid   of CPU alone   beyond the longer\n");
  for (const uint32_t n : {1u, 2u, 4u, 8u}) {
    std::vector<std::vector<int32_t>> choices;
    const double fixed = step_time(*only_dense, nullptr, dense, n);
    const double gpu = (step_time(*alone, nullptr, c, n) - fixed) / layers;
    const double both = (step_time(*hybrid, &ranks, c, n, &choices) - fixed) / layers;
    const double cpu = experts_time(ranks, c, n, choices);
    printf("               %2u   %9.1f  %6.0f   %9.1f %8.1f   %10.3f x   %10.1f\n", n, 1e6 * cpu,
           n == 1 ? experts / cpu * 1e-9 : 0, 1e6 * gpu, 1e6 * both, both / cpu, 1e6 * (both - std::max(cpu, gpu)));
    fflush(stdout);
  }
}

}  // namespace

int main(int count, char** arguments) {
  constexpr check::Types q8 = {DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0};
  constexpr check::Types floats = {DType::F32, DType::F32, DType::F32, DType::F32, DType::F32};
  constexpr check::Types mixed = {DType::Q4_K, DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::Q6_K};
  // For the engine on this thread.
  RankThread here = {};
  here.kernels = kernels_named(table());
  rank_thread = &here;
  if (count < 3) {
    for (const uint32_t threads : {1u, 3u, 8u}) {
      compare("F32", floats, threads);
      compare("Q8_0", q8, threads);
      compare("Q4_K mix", mixed, threads);
    }
  }
  if (count > 1 && strcmp(arguments[1], "small") == 0) return check::done();
  const uint32_t cores = std::thread::hardware_concurrency();
  time_layers(count > 2 ? static_cast<uint32_t>(atoi(arguments[1])) : cores - 1,
              count > 2 ? static_cast<uint32_t>(atoi(arguments[2])) : 3);
  return check::done();
}
