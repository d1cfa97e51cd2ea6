// A model divided over several devices: the same bits as on one, and what a step pays for crossing over. With one device all parts
// lie there. `parts small` only compares, `parts tiny` the least of it.
#include "expert_ranks.cuh"

using namespace perigee;
using cuda::DeviceModel;

namespace {

std::unique_ptr<DeviceModel> divided(const check::RandomModel& model, const Limits& limits, uint32_t parts) {
  const ModelConfig& c = model.config;
  cuda::ModelOptions options = {c, limits, check::parts_of(c, parts), std::vector<int32_t>(c.layers, 0), false, 2000};
  for (uint32_t layer = c.dense_layers; layer < c.layers; layer++)
    options.resident[layer] = static_cast<int32_t>(c.experts);
  return check::on_device(model, options);
}

void compare(const char* name, const check::Types& types, const std::vector<uint32_t>& divisions,
             uint32_t single_steps) {
  const ModelConfig c = check::small_config(4);
  const Limits limits = check::limits_of(128, 512);
  const check::RandomModel model(c, types);
  const auto whole = divided(model, limits, 1);
  for (const uint32_t parts : divisions) {
    const auto several = divided(model, limits, parts);
    uint64_t tokens = 0;
    size_t different = 0;
    const auto both = [&](uint32_t n, uint32_t position, bool prompt) {
      for (DeviceModel* device : {whole.get(), several.get()}) {
        check::fill(device->block(), c, n, position, prompt, position);
        check::step(*device, nullptr, n);
      }
      const size_t count = size_t{whole->block().outputs_count} * c.vocabulary;
      different += memcmp(whole->block().logits, several->block().logits, count * sizeof(float)) != 0;
      tokens += n;
    };
    both(20, 19, true);
    both(100, 119, true);
    for (uint32_t i = 0; i < single_steps; i++) both(1 + i % 3, 120 + i, false);
    char line[128];
    snprintf(line, sizeof line, "%s in %u parts: the bits of one", name, parts);
    check::expect(different == 0, line);
    check::expect_counts(*several, tokens, name);
  }
}

// Microseconds of a step, the median.
double microseconds(DeviceModel& device, uint32_t n, bool prompt) {
  std::vector<double> times;
  for (uint32_t i = 0; i < 60; i++) {
    check::fill(device.block(), device.options().config, n, 600, prompt, i);
    times.push_back(1e6 * check::step(device, nullptr, n));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void time_crossing() {
  ModelConfig c = check::small_config(4);
  c.hidden = 7168;
  const check::RandomModel model(c, {DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0});
  const Limits limits = check::limits_of(512, 1024);
  const auto one = divided(model, limits, 1), two = divided(model, limits, 2), four = divided(model, limits, 4);
  for (const uint32_t n : {1u, 16u, 512u}) {
    const bool prompt = n > 16;
    const double whole = microseconds(*one, n, prompt), halves = microseconds(*two, n, prompt),
                 quarters = microseconds(*four, n, prompt);
    printf("%3u tokens: one part %.0f us, two %.0f, four %.0f: a crossing costs %.1f us\n", n, whole, halves, quarters,
           (quarters - whole) / 3);
  }
}

}  // namespace

int main(int count, char** arguments) {
  RankThread mine = {};
  mine.kernels = kernels_named(check::kTable);
  rank_thread = &mine;
  int devices, direct = 0;
  MUST(cudaGetDeviceCount(&devices));
  if (devices > 1) MUST(cudaDeviceCanAccessPeer(&direct, 1, 0));
  printf("%d devices%s\n", devices, devices == 1 ? "" : direct ? ", connected" : ", not connected");
  constexpr check::Types q8 = {DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0};
  if (count > 1 && strcmp(arguments[1], "tiny") == 0) {
    compare("Q8_0", q8, {2}, 6);
    return check::done();
  }
  compare("F32", {DType::F32, DType::F32, DType::F32, DType::F32, DType::F32}, {2, 4}, 100);
  compare("Q8_0", q8, {2, 4}, 100);
  compare("Q4_K mix", {DType::Q4_K, DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::Q6_K}, {2, 4}, 100);
  if (count < 2) time_crossing();
  return check::done();
}
