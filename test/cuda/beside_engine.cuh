// Stages of a model on the device beside the engine's, each begun with the engine's own values.
#pragma once
#include "../../engine/state.h"
#include "random_model.cuh"

namespace check {

// The residuals of the engine's last step as Step has them.
inline std::vector<float> residuals_of(const Engine& engine, uint32_t n) {
  std::vector<float> all;
  for (uint32_t layer = 0; layer <= engine.config.layers; layer++) {
    uint32_t width = 0;
    const void* at = layer == 0 ? engine_tap(engine, Tap::Embedding, 0, &width)
                                : engine_tap(engine, Tap::Residual, layer - 1, &width);
    const auto* rows = static_cast<const float*>(at);
    all.insert(all.end(), rows, rows + size_t{n} * width);
  }
  return all;
}

// What a stage may add where each layer and the head begin with the engine's residual; errors pass on within a layer.
constexpr double kStage = 5e-4;
constexpr struct {
  Tap tap;
  const char* name;
  uint32_t stages;  // since the layer began
} kTaps[] = {{Tap::Embedding, "embedding", 1}, {Tap::Latent, "latent", 1},         {Tap::Attention, "attention", 2},
             {Tap::RouterScores, "scores", 3}, {Tap::RouterChoices, "choices", 0}, {Tap::FeedForward, "ffn", 4},
             {Tap::Residual, "residual", 4}};
constexpr size_t kTapCount = sizeof kTaps / sizeof *kTaps;

// What the stages of all steps were off by: kTaps of each layer, and the logits, which are one tap more.
class StageErrors {
 public:
  void add(size_t which, uint32_t layer, const float* ours, const float* theirs, size_t count) {
    Sums& sums = of_[{which, layer}];
    for (size_t i = 0; i < count; i++) {
      sums.error += (double(ours[i]) - theirs[i]) * (double(ours[i]) - theirs[i]);
      sums.size += double(theirs[i]) * theirs[i];
    }
  }
  void add_choices(bool same) { same_choices_ = same_choices_ && same; }

  // The NMSE of the worst layer; NaN where one has that.
  double worst(size_t which) const {
    double most = 0;
    for (const auto& [key, sums] : of_) {
      if (key.first != which) continue;
      const double nmse = sums.error / sums.size;
      if (isnan(nmse)) return nmse;
      most = std::max(most, nmse);
    }
    return most;
  }
  bool within() const {
    bool all = same_choices_ && worst(kTapCount) <= kStage;
    for (size_t i = 0; i < kTapCount; i++) all = all && worst(i) <= kTaps[i].stages * kStage;
    return all;
  }

 private:
  struct Sums {
    double error = 0, size = 0;
  };
  std::map<std::pair<size_t, uint32_t>, Sums> of_;
  bool same_choices_ = true;
};

// Whether each row of `width` integers has the same ones, in whatever order.
inline bool same_sets(const void* a, const void* b, uint32_t rows, uint32_t width) {
  std::vector<int32_t> ours(width), theirs(width);
  for (uint32_t r = 0; r < rows; r++) {
    memcpy(ours.data(), static_cast<const int32_t*>(a) + r * width, width * sizeof(int32_t));
    memcpy(theirs.data(), static_cast<const int32_t*>(b) + r * width, width * sizeof(int32_t));
    std::sort(ours.begin(), ours.end());
    std::sort(theirs.begin(), theirs.end());
    if (ours != theirs) return false;
  }
  return true;
}

inline void compare_taps(cuda::DeviceModel& device, const Engine& engine, uint32_t n, StageErrors& errors) {
  for (uint32_t layer = 0; layer < engine.config.layers; layer++) {
    for (size_t i = 0; i < kTapCount; i++) {
      uint32_t width = 0;
      const void* there = engine_tap(engine, kTaps[i].tap, layer, &width);
      if (!there) continue;
      std::vector<float> ours(size_t{n} * width);
      if (!device.tap(kTaps[i].tap, layer, n, ours.data())) must("a tap is missing");
      const auto* theirs = static_cast<const float*>(there);
      if (kTaps[i].tap == Tap::RouterChoices) {
        errors.add_choices(same_sets(ours.data(), theirs, n, width));
      } else {
        errors.add(i, layer, ours.data(), theirs, ours.size());
      }
    }
  }
}

// Mean divergence of distributions over the vocabulary, row by row, in nats.
inline double divergence(const float* p, const float* q, uint32_t rows, uint32_t vocabulary) {
  double all = 0;
  for (uint32_t r = 0; r < rows; r++, p += vocabulary, q += vocabulary) {
    double sum_p = 0, sum_q = 0, apart = 0;
    for (uint32_t i = 0; i < vocabulary; i++) sum_p += exp(double(p[i])), sum_q += exp(double(q[i]));
    for (uint32_t i = 0; i < vocabulary; i++)
      apart += exp(double(p[i])) / sum_p * (double(p[i]) - q[i] + log(sum_q) - log(sum_p));
    all += apart / rows;
  }
  return all;
}

}  // namespace check
