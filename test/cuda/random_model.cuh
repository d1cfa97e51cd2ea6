// A random model for the engine on the CPU and for the device: the same bytes for both.
#pragma once
#include <string.h>

#include <map>
#include <memory>

#include "../../engine/kernels/kernels.h"
#include "../../engine/quant/encode.h"
#include "../../engine/sizes.h"
#include "../../native/cuda/device_model.h"
#include "harness.cuh"

namespace check {

using namespace perigee;

constexpr const char* kTable = "avx2";  // every machine's

// A model of K2's kind, small enough for the engine on one core.
inline ModelConfig small_config(uint32_t layers) {
  ModelConfig c = {};
  c.layers = layers;
  c.dense_layers = 1;
  c.hidden = c.q_rank = c.kv_rank = 256;
  c.vocabulary = 500;
  c.heads = 8;
  c.nope_dim = c.rope_dim = c.value_dim = 32;
  c.dense_width = 512;
  c.experts = 16;
  c.experts_used = 4;
  c.expert_width = c.shared_width = 256;
  c.groups = c.groups_used = 1;
  c.gating = Gating::Sigmoid;
  c.normalize_weights = 1;
  c.weight_scale = 2.0f;
  c.rms_eps = 1e-5f;
  c.rope_base = 10000;
  c.rope_magnitude = c.attention_factor = 1;
  return c;
}

// What Kimi K2's layers have.
inline void widen_to_k2(ModelConfig& c) {
  c.hidden = 7168;
  c.heads = 64;
  c.q_rank = 1536;
  c.kv_rank = 512;
  c.nope_dim = c.value_dim = 128;
  c.rope_dim = 64;
  c.dense_width = 18432;
  c.experts = 384;
  c.experts_used = 8;
  c.expert_width = c.shared_width = 2048;
}

// Which type each kind of matrix has.
struct Types {
  DType plain, gate_up, down, heads, output;
};

inline DType type_of(const Types& types, Slot slot) {
  switch (slot) {
    case Slot::Router:
      return DType::F32;
    case Slot::AttnKB:
    case Slot::AttnVB:
      return types.heads;
    case Slot::ExpertGate:
    case Slot::ExpertUp:
      return types.gate_up;
    case Slot::ExpertDown:
      return types.down;
    case Slot::TokenEmbd:
    case Slot::Output:
      return types.output;
    default:
      return types.plain;
  }
}

inline bool is_global(Slot slot) { return slot == Slot::TokenEmbd || slot == Slot::Output; }

inline bool in_layer(const ModelConfig& c, Slot slot, uint32_t layer) {
  if (is_global(slot)) return layer == 0;
  const bool dense = layer < c.dense_layers;
  if (slot >= Slot::FfnGate && slot <= Slot::FfnDown) return dense;
  if (slot >= Slot::Router && slot <= Slot::SharedDown) return !dense;
  return true;
}

// Calls use(slot, layer, shape) for every matrix that the model has.
template <typename Use>
void for_each_matrix(const ModelConfig& c, Use use) {
  for (uint32_t layer = 0; layer < c.layers; layer++) {
    for (uint32_t s = 0; s < static_cast<uint32_t>(Slot::Count); s++) {
      const Slot slot = static_cast<Slot>(s);
      const MatrixShape shape = slot_shape(c, slot);
      if (shape.rows > 0 && shape.cols > 0 && in_layer(c, slot, layer)) use(slot, layer, shape);
    }
  }
}

// Rows of normal values of variance 1 / cols; `distinct` of them, repeated.
inline std::vector<uint8_t> random_rows(DType type, uint32_t rows, uint32_t cols, uint32_t distinct,
                                        std::mt19937& from) {
  std::normal_distribution<float> normal(0, 1 / sqrtf(static_cast<float>(cols)));
  const size_t bytes = row_bytes(type, cols);
  std::vector<uint8_t> raw(bytes * rows);
  std::vector<float> row(cols);
  for (uint32_t r = 0; r < rows; r++) {
    if (r >= distinct) {
      memcpy(raw.data() + r * bytes, raw.data() + (r - distinct) * bytes, bytes);
      continue;
    }
    for (float& x : row) x = normal(from);
    if (type == DType::F32) {
      memcpy(raw.data() + r * bytes, row.data(), bytes);
    } else {
      encode_row(type, row.data(), cols, raw.data() + r * bytes);
    }
  }
  return raw;
}

struct RandomModel {
  ModelConfig config;
  Types types;
  std::map<std::pair<Slot, uint32_t>, std::vector<uint8_t>> matrices;  // all of a slot and layer, one after the other
  std::map<std::pair<Vector, uint32_t>, std::vector<float>> vectors;

  RandomModel(const ModelConfig& c, const Types& t) : config(c), types(t) {
    std::mt19937 from(11);
    for_each_matrix(c, [&](Slot slot, uint32_t layer, MatrixShape shape) {
      const uint32_t rows = shape.rows * shape.count;
      matrices[{slot, layer}] = random_rows(type_of(t, slot), rows, shape.cols, rows, from);
    });
    std::normal_distribution<float> around(1, 0.1f);
    const auto fill = [&](Vector vector, uint32_t layer, uint32_t length, auto& of) {
      std::vector<float>& to = vectors[{vector, layer}];
      to.resize(length);
      for (float& x : to) x = of(from);
    };
    fill(Vector::OutputNorm, 0, c.hidden, around);
    for (uint32_t layer = 0; layer < c.layers; layer++) {
      fill(Vector::AttnNorm, layer, c.hidden, around);
      fill(Vector::FfnNorm, layer, c.hidden, around);
      if (c.q_rank) fill(Vector::QANorm, layer, c.q_rank, around);
      fill(Vector::KVANorm, layer, c.kv_rank, around);
      // Some experts are always chosen: near ties would be decided by the last bits, and then nothing could be compared.
      for (uint32_t e = 0; e < c.experts && layer >= c.dense_layers; e++)
        vectors[{Vector::RouterBias, layer}].push_back((e * 7 + layer * 3) % c.experts < c.experts_used ? 2.0f : 0.0f);
    }
  }

  const uint8_t* matrix(Slot slot, uint32_t layer, uint32_t index) const {
    const MatrixShape shape = slot_shape(config, slot);
    return matrices.at({slot, layer}).data() + index * shape.rows * row_bytes(type_of(types, slot), shape.cols);
  }
};

// The engine with one rank, in memory of its own.
class OnCpu {
 public:
  OnCpu(const RandomModel& model, const Limits& limits) {
    const uint64_t bytes = engine_bytes(model.config, limits);
    arena_.reset(static_cast<uint8_t*>(aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)));
    memset(arena_.get(), 0, bytes);
    if (engine_create(arena_.get(), bytes, model.config, limits, kTable, &engine) != Status::Ok) abort();
    for_each_matrix(model.config, [&](Slot slot, uint32_t layer, MatrixShape shape) {
      Location* at =
          engine_bind(*engine, 0, slot, layer, type_of(model.types, slot), 0, shape.rows, shape.cols, shape.count);
      if (!at) abort();
      for (uint32_t i = 0; i < shape.count; i++)
        at[i] = {reinterpret_cast<uint64_t>(model.matrix(slot, layer, i)), 0, 0};
    });
    for (const auto& [key, values] : model.vectors) {
      uint32_t length = 0;
      memcpy(engine_vector(*engine, key.first, key.second, &length), values.data(), values.size() * sizeof(float));
    }
  }

  Engine* engine = nullptr;

 private:
  struct Free {
    void operator()(uint8_t* at) const { free(at); }
  };
  std::unique_ptr<uint8_t, Free> arena_;
};

// Ends the program with the sentence.
inline void must(const std::string& why) {
  if (why.empty()) return;
  fprintf(stderr, "%s\n", why.c_str());
  exit(1);
}

// Equal shares of the layers, on as many devices as there are.
inline std::vector<cuda::PartRange> parts_of(const ModelConfig& c, uint32_t parts) {
  int devices;
  MUST(cudaGetDeviceCount(&devices));
  std::vector<cuda::PartRange> ranges;
  for (uint32_t p = 0; p < parts; p++)
    ranges.push_back({static_cast<int>(p) % devices, c.layers * p / parts, c.layers * (p + 1) / parts});
  return ranges;
}

// Each of a step's tokens has chosen so many experts of each layer, whoever computes them.
inline void expect_counts(cuda::DeviceModel& device, uint64_t tokens, const char* name) {
  const ModelConfig& c = device.options().config;
  std::vector<uint32_t> counts(size_t{c.layers} * c.experts);
  device.expert_counts(counts.data());
  bool right = true;
  for (uint32_t layer = 0; layer < c.layers; layer++) {
    uint64_t sum = 0;
    for (uint32_t e = 0; e < c.experts; e++) sum += counts[size_t{layer} * c.experts + e];
    right &= sum == (layer < c.dense_layers ? 0 : tokens * c.experts_used);
  }
  char line[256];
  snprintf(line, sizeof line, "%s: every choice is counted once", name);
  expect(right, line);
}

inline std::unique_ptr<cuda::DeviceModel> on_device(const RandomModel& model, const cuda::ModelOptions& options) {
  must(cuda::DeviceModel::refusal(options));
  auto device = std::make_unique<cuda::DeviceModel>(options);
  must(device->open());
  for_each_matrix(model.config, [&](Slot slot, uint32_t layer, MatrixShape shape) {
    const DType type = type_of(model.types, slot);
    const bool routed = slot >= Slot::ExpertGate && slot <= Slot::ExpertDown;
    if (routed && options.resident[layer] < static_cast<int32_t>(shape.count)) return;
    for (uint32_t i = 0; i < shape.count; i++)
      must(device->upload(slot, layer, type, shape.rows, shape.cols, shape.count, i, model.matrix(slot, layer, i),
                          shape.rows * row_bytes(type, shape.cols)));
  });
  for (const auto& [key, values] : model.vectors) {
    const uint8_t* raw = reinterpret_cast<const uint8_t*>(values.data());
    if (!device->set_vector(key.first, key.second, DType::F32, raw, values.size() * sizeof(float))) must("set_vector");
  }
  must(device->start());
  return device;
}

}  // namespace check
