// A model on the device whose routed experts are computed by threads of the CPU: logits beside those of the engine alone, and
// the time of a layer of K2's width beside what its experts take without a device. `hybrid small` only compares, `hybrid tiny`
// the least of it; `hybrid RANKS LAYERS` only measures, with so many threads and as many layers as memory holds (9.5 GB each).
#include <unistd.h>

#include <set>

#include "../../native/limits.h"
#include "../../native/rank_thread.h"
#include "expert_ranks.cuh"

using namespace perigee;
using check::device_beside;
using check::fill;
using check::is_routed;
using check::limits_of;
using check::Ranks;
using check::step;
using cuda::DeviceModel;

namespace {

// How a model is divided: experts of each layer that lie on the device, and parts of the layers.
struct Division {
  uint32_t resident, parts;
};

// Every third expert goes into a slot.
void place(DeviceModel& device, const ModelConfig& c, uint32_t resident) {
  for (uint32_t layer = c.dense_layers; layer < c.layers; layer++)
    for (uint32_t slot = 0; slot < resident; slot++) {
      const uint32_t expert = slot * 3 % c.experts;
      check::must(device.forget(layer, expert, slot));
      check::must(device.place(layer, expert, slot));
      device.use(layer, expert, slot);
    }
}

std::unique_ptr<DeviceModel> loaded(const check::RandomModel& model, const Limits& limits, Ranks* ranks,
                                    const Division& division) {
  const ModelConfig& c = model.config;
  auto device = device_beside(c, limits, ranks, division.resident, division.parts);
  check::for_each_matrix(c, [&](Slot slot, uint32_t layer, MatrixShape shape) {
    const DType type = check::type_of(model.types, slot);
    const uint64_t bytes = shape.rows * row_bytes(type, shape.cols);
    if (ranks && is_routed(slot)) return;
    for (uint32_t i = 0; i < shape.count; i++)
      check::must(device->upload(slot, layer, type, shape.rows, shape.cols, shape.count, i,
                                 model.matrix(slot, layer, i), bytes));
  });
  for (const auto& [key, values] : model.vectors)
    device->set_vector(key.first, key.second, DType::F32, reinterpret_cast<const uint8_t*>(values.data()),
                       values.size() * sizeof(float));
  if (ranks) ranks->attach(*device);
  check::must(device->start());
  if (ranks) place(*device, c, division.resident);
  return device;
}

struct Asked {
  uint32_t n, position;
  bool prompt;
};

// Activations of 8 bits, and what they turn over in a random router, take the device away from the engine whoever computes the
// experts: with ranks it must not be further than without.
void compare(const char* name, const check::Types& types, uint32_t threads, uint32_t layers,
             const std::vector<Asked>& steps, const Division& division = {0, 1}) {
  const ModelConfig c = check::small_config(layers);
  const Limits limits = limits_of(64, 256);
  const check::RandomModel model(c, types);
  check::OnCpu cpu(model, limits);
  Ranks ranks(c, limits, threads, types,
              [&](Slot slot, uint32_t layer, uint32_t i) { return model.matrix(slot, layer, i); });
  const auto hybrid = loaded(model, limits, &ranks, division), alone = loaded(model, limits, nullptr, {c.experts, 1});
  uint64_t tokens = 0;
  std::vector<float> of_hybrid, of_device;
  std::vector<double> wanted;
  for (const Asked& asked : steps) {
    StepBlock& there = *engine_step_block(*cpu.engine);
    for (StepBlock* block : {&hybrid->block(), &alone->block(), &there})
      fill(*block, c, asked.n, asked.position, asked.prompt, asked.position);
    engine_forward(*cpu.engine, 0);
    step(*hybrid, &ranks, asked.n);
    step(*alone, nullptr, asked.n);
    tokens += asked.n;
    const size_t count = size_t{there.outputs_count} * c.vocabulary;
    of_hybrid.insert(of_hybrid.end(), hybrid->block().logits, hybrid->block().logits + count);
    of_device.insert(of_device.end(), alone->block().logits, alone->block().logits + count);
    wanted.insert(wanted.end(), there.logits, there.logits + count);
  }
  const double off = check::nmse(of_hybrid, wanted), yardstick = check::nmse(of_device, wanted);
  char line[160];
  snprintf(line, sizeof line,
           "%s, %u threads, %u experts on the device, %u parts: logits NMSE %.1e, with all experts on it %.1e", name,
           threads, division.resident, division.parts, off, yardstick);
  check::expect(off <= 1.5 * yardstick + 1e-6, line);
  check::expect_counts(*hybrid, tokens, name);
}

constexpr check::Types kWide = {DType::Q8_0, DType::Q4_K, DType::Q4_K, DType::Q8_0, DType::Q8_0};

using Rows = std::map<std::tuple<DType, uint32_t, uint32_t>, std::vector<uint8_t>>;

const uint8_t* rows_of(Rows& made, Slot slot, const MatrixShape& shape) {
  const DType type = check::type_of(kWide, slot);
  std::vector<uint8_t>& raw = made[{type, shape.rows, shape.cols}];
  std::mt19937 from(3);
  // Enough of them that tokens stay as different as they are in a real model: they would share experts otherwise.
  if (raw.empty()) raw = check::random_rows(type, shape.rows, shape.cols, std::min(shape.rows, 512u), from);
  return raw.data();
}

// All but the experts.
std::unique_ptr<DeviceModel> wide_device(const ModelConfig& c, const Limits& limits, Ranks* ranks, Rows& made) {
  auto device = device_beside(c, limits, ranks, 0);
  check::for_each_matrix(c, [&](Slot slot, uint32_t layer, MatrixShape shape) {
    const DType type = check::type_of(kWide, slot);
    for (uint32_t i = 0; i < shape.count && !is_routed(slot); i++)
      check::must(device->upload(slot, layer, type, shape.rows, shape.cols, shape.count, i, rows_of(made, slot, shape),
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
      device->set_vector(static_cast<Vector>(v), layer, DType::F32, reinterpret_cast<const uint8_t*>(values.data()),
                         values.size() * sizeof(float));
    }
  }
  check::must(device->start());
  return device;
}

Ranks wide_ranks(const ModelConfig& c, const Limits& limits, uint32_t threads, Rows& made) {
  check::for_each_matrix(c, [&](Slot slot, uint32_t, MatrixShape shape) { rows_of(made, slot, shape); });
  // The writing threads only read.
  return Ranks(c, limits, threads, kWide,
               [&](Slot slot, uint32_t, uint32_t) { return rows_of(made, slot, slot_shape(c, slot)); });
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

constexpr uint32_t kContext = 2048, kWarmUp = 5;

// Seconds of each of `steps` steps.
struct Times {
  std::vector<double> hybrid, device, experts;  // device: without its MoE layers, or without their experts
  std::vector<double> read, read_alone;         // different experts a layer: tokens share some
};

// Pairs of layer and expert that were chosen between two counts [layers][experts].
double chosen_since(const std::vector<uint32_t>& counts, const std::vector<uint32_t>& before) {
  double chosen = 0;
  for (size_t i = 0; i < counts.size(); i++) chosen += counts[i] != before[i];
  return chosen;
}

// The three in turn, so that whatever else the machine does meets all of them. The experts alone are those of the step before.
Times times_of(DeviceModel& hybrid, DeviceModel& device, Ranks& ranks, const ModelConfig& c, uint32_t n,
               uint32_t steps) {
  Times times;
  std::vector<uint32_t> counts(size_t{c.layers} * c.experts), before;
  for (uint32_t i = 0; i < kWarmUp + steps; i++) {
    hybrid.expert_counts(counts.data());
    before = counts;
    for (StepBlock* block : {&hybrid.block(), &device.block()}) fill(*block, c, n, 1000 + i % 20, false, i);
    const double both = step(hybrid, &ranks, n), experts = ranks.alone(n), without = step(device, nullptr, n);
    if (i < kWarmUp) continue;
    const int32_t* chosen = ranks.exchange().chosen;
    hybrid.expert_counts(counts.data());
    times.read.push_back(chosen_since(counts, before) / (c.layers - c.dense_layers));
    times.read_alone.push_back(double(std::set<int32_t>(chosen, chosen + n * c.experts_used).size()));
    times.hybrid.push_back(both);
    times.device.push_back(without);
    times.experts.push_back(experts);
  }
  return times;
}

// What handing over and waiting cost a layer: experts so narrow that microseconds show, no shared expert that would hide them.
void time_meeting(uint32_t threads) {
  ModelConfig c = check::small_config(1 + 8);
  check::widen_to_k2(c);
  c.vocabulary = 4096;
  c.experts = 64;
  c.expert_width = 256;
  c.shared_width = 0;
  const Limits limits = limits_of(16, kContext);
  Rows made;
  Ranks ranks = wide_ranks(c, limits, threads, made);
  const auto hybrid = wide_device(c, limits, &ranks, made), device = wide_device(c, limits, nullptr, made);
  const Times t = times_of(*hybrid, *device, ranks, c, 1, 400);
  std::vector<double> beyond;
  for (size_t i = 0; i < t.hybrid.size(); i++) beyond.push_back(t.hybrid[i] - t.device[i] - t.experts[i]);
  const double us = 1e6 / (c.layers - c.dense_layers);
  printf("a layer of narrow experts, us: experts alone %.1f, device alone %.1f, hybrid %.1f\n", us * median(t.experts),
         us * median(t.device), us * median(t.hybrid));
  check::figure("meeting the ranks, a layer", us * median(beyond), "us", check::Asked::AtMost, 5);
}

void time_layers(uint32_t threads, uint32_t layers) {
  ModelConfig c = check::small_config(1 + layers);
  check::widen_to_k2(c);
  c.vocabulary = 163840;
  const Limits limits = limits_of(16, kContext);
  Rows made;
  const double limit =
      measure_limits(threads, *kernels_named(check::table()), Ranks::cpus_of(threads)).read_gb_per_second;
  const double before = check::seconds();
  Ranks ranks = wide_ranks(c, limits, threads, made);
  const double expert_bytes = 3.0 * c.expert_width * row_bytes(DType::Q4_K, c.hidden);
  printf(
      "%s, %u ranks, %u MoE layers of K2's width in Q4_K: %.1f GB of experts, filled in %.1f s; %u threads read %.1f "
      "GB/s\n",
      check::table(), threads, layers, expert_bytes * c.experts * layers * 1e-9, check::seconds() - before, threads,
      limit);
  ModelConfig dense = c;
  dense.layers = 1;
  const auto hybrid = wide_device(c, limits, &ranks, made), only_dense = wide_device(dense, limits, nullptr, made);
  printf("one layer, ms:   n   experts   alone   hybrid   ratio an expert (10 to 90 %%)      GB/s alone, hybrid   ");
  printf("61 layers, tokens/s\n");
  for (const uint32_t n : {1u, 2u, 4u, 8u}) {
    const Times t = times_of(*hybrid, *only_dense, ranks, c, n, n == 1 ? 200 : std::max(60 / n, 10u));
    const double fixed = median(t.device);
    std::vector<double> layer, ratio, rate, rate_alone;
    for (size_t i = 0; i < t.hybrid.size(); i++) {
      layer.push_back((t.hybrid[i] - fixed) / layers);
      rate.push_back(expert_bytes * t.read[i] / layer[i]);
      rate_alone.push_back(expert_bytes * t.read_alone[i] * layers / t.experts[i]);
      ratio.push_back(rate_alone[i] / rate[i]);
    }
    std::sort(ratio.begin(), ratio.end());
    printf("                %2u   %7.1f   %5.3f   %6.3f   %15.3f (%.3f to %.3f)   %15.1f, %6.1f   %19.2f\n", n,
           median(t.read), 1e3 * median(t.experts) / layers, 1e3 * median(layer), ratio[ratio.size() / 2],
           ratio[ratio.size() / 10], ratio[ratio.size() * 9 / 10], 1e-9 * median(rate_alone), 1e-9 * median(rate),
           n / (60 * median(layer) + fixed));
    if (n == 1)
      check::figure("hybrid layer of Kimi K2, beside its experts alone", ratio[ratio.size() / 2], "x",
                    check::Asked::AtMost, 1.1);
    fflush(stdout);
  }
}

// 9.5 GB each, beside a quarter for others.
uint32_t layers_that_fit() {
  const double free = double(sysconf(_SC_AVPHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
  return static_cast<uint32_t>(0.75 * free / 9.5e9);
}

}  // namespace

int main(int count, char** arguments) {
  constexpr check::Types q8 = {DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0};
  constexpr check::Types floats = {DType::F32, DType::F32, DType::F32, DType::F32, DType::F32};
  constexpr check::Types mixed = {DType::Q4_K, DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::Q6_K};
  // For the engine on this thread.
  RankThread here = {};
  here.kernels = kernels_named(check::table());
  rank_thread = &here;
  const std::string only = count > 1 ? arguments[1] : "";
  const uint32_t cores = std::thread::hardware_concurrency();
  if (only == "tiny") {
    compare("Q8_0", q8, 3, 2, {{5, 4, true}, {1, 5, false}, {1, 6, false}, {1, 7, false}});
    return check::done();
  }
  if (count < 3) {
    std::vector<Asked> steps = {{5, 4, true}, {40, 44, true}};
    for (uint32_t position = 45; position < 75; position++) steps.push_back({1, position, false});
    for (const uint32_t threads : {1u, 3u, 8u}) {
      compare("F32", floats, threads, 4, steps);
      compare("Q8_0", q8, threads, 4, steps);
      compare("Q4_K mix", mixed, threads, 4, steps);
    }
    for (const auto& [name, types] : {std::pair("F32", floats), {"Q8_0", q8}, {"Q4_K mix", mixed}})
      for (const Division& division : {Division{5, 1}, {0, 2}, {5, 2}}) compare(name, types, 3, 4, steps, division);
  }
  if (only == "small") return check::done();
  const uint32_t threads = count > 2 ? static_cast<uint32_t>(atoi(arguments[1])) : cores;
  const uint32_t layers = count > 2 ? static_cast<uint32_t>(atoi(arguments[2])) : std::min(3u, layers_that_fit());
  time_meeting(threads);
  if (layers > 0) {
    time_layers(threads, layers);
  } else {
    printf("layers of K2's width are left out: there is no memory for one\n");
  }
  return check::done();
}
