// The router, grouping by expert and gathering against doubles and the engine's own rules; times beside the memory's.
// `routing small` leaves the times out, for the sanitizer.
#include "../../engine/router.h"
#include "../../native/cuda/stages.h"
#include "rows.cuh"

using namespace perigee;
using namespace perigee::cuda;
using check::device;
using check::download;
using check::expect;
using check::normal;
using check::random_bits;
using check::upload;
using check::wide_to_float;

namespace {

struct RouterCase {
  uint32_t n, hidden, experts, used, groups, groups_used;
  bool sigmoid, normalize;
  DType type;
};

Router make_router(const RouterCase& c, const void* w, const float* bias, const float* h) {
  uint32_t *counts = device<uint32_t>(c.experts), *arrived = device<uint32_t>(1);
  MUST(cudaMemset(counts, 0, c.experts * 4));
  MUST(cudaMemset(arrived, 0, 4));
  return {w,
          c.type,
          bias,
          h,
          c.n,
          c.hidden,
          c.experts,
          c.used,
          c.groups,
          c.groups_used,
          c.sigmoid,
          c.normalize,
          2.5f,
          device<float>(size_t(c.n) * c.experts),
          device<int32_t>(c.n * c.used),
          device<float>(c.n * c.used),
          counts,
          arrived};
}

void check_router(const RouterCase& c) {
  auto w = normal(size_t(c.experts) * c.hidden, 1 / sqrtf(c.hidden));
  const auto h = normal(size_t(c.n) * c.hidden), bias = normal(c.experts, 0.05f);
  const void* dw = nullptr;
  if (c.type == DType::F32) {
    for (uint32_t i = 0; i < c.hidden; i++) w[c.hidden + i] = w[i];  // experts 0 and 1 score alike
    dw = upload(w);
  } else {
    std::vector<uint16_t> bits(w.size());
    for (size_t i = 0; i < w.size(); i++) {
      bits[i] = c.type == DType::F16 ? float_to_half(w[i]) : uint16_t(__builtin_bit_cast(uint32_t, w[i]) >> 16);
      w[i] = c.type == DType::F16 ? half_to_float(bits[i]) : bf16_to_float(bits[i]);
    }
    dw = upload(bits);
  }
  auto equal_bias = bias;
  equal_bias[1] = equal_bias[0];
  const Router args = make_router(c, dw, upload(equal_bias), upload(h));
  MUST(route(nullptr, args));
  MUST(route(nullptr, args));  // the counter of arrived blocks is as it was
  MUST(cudaDeviceSynchronize());
  const auto scores = download(args.scores, size_t(c.n) * c.experts), weight = download(args.weight, c.n * c.used);
  const auto chosen = download(args.chosen, c.n * c.used);
  const auto counts = download(args.counts, c.experts);
  ModelConfig config = {};
  config.experts = c.experts;
  config.experts_used = c.used;
  config.groups = c.groups;
  config.groups_used = c.groups_used;
  config.gating = c.sigmoid ? Gating::Sigmoid : Gating::Softmax;
  config.normalize_weights = c.normalize;
  config.weight_scale = 2.5f;
  double worst = 0, worst_weight = 0;
  uint32_t different = 0;
  std::vector<uint32_t> want_counts(c.experts);
  for (uint32_t t = 0; t < c.n; t++) {
    for (uint32_t e = 0; e < c.experts; e++) {
      double logit = 0;
      for (uint32_t i = 0; i < c.hidden; i++)
        logit += double(w[size_t(e) * c.hidden + i]) * h[size_t(t) * c.hidden + i];
      worst = std::max(worst, std::fabs(scores[t * c.experts + e] - (c.sigmoid ? 1 / (1 + exp(-logit)) : logit)));
    }
    // The engine's own choice from the device's scores: it must be the same one.
    std::vector<float> row(&scores[t * c.experts], &scores[t * c.experts] + c.experts), keys(c.experts),
        weights(c.used);
    std::vector<int32_t> picks(c.used);
    if (!c.sigmoid) {
      double sum = 0;
      const float highest = *std::max_element(row.begin(), row.end());
      for (float& s : row) sum += s = expf(s - highest);
      for (float& s : row) s /= float(sum);
    }
    choose_experts(config, row.data(), equal_bias.data(), keys.data(), picks.data(), weights.data());
    for (uint32_t k = 0; k < c.used; k++) {
      different += picks[k] != chosen[t * c.used + k];
      worst_weight = std::max(worst_weight, std::fabs(double(weights[k]) - weight[t * c.used + k]));
      want_counts[picks[k]] += 2;
    }
  }
  char name[160];
  snprintf(name, sizeof name,
           "route n %u, %u experts, %u groups, %s, type %u: scores %.1e, weights %.1e, %u choices differ", c.n,
           c.experts, c.groups, c.sigmoid ? "sigmoid" : "softmax", unsigned(c.type), worst, worst_weight, different);
  expect(worst < (c.sigmoid ? 1e-6 : 4e-6) && worst_weight < 2e-6 && different == 0 && counts == want_counts, name);
}

void check_grouping(uint32_t n, uint32_t used, uint32_t experts, bool renamed) {
  std::vector<int32_t> chosen(n * used), group_of(experts);
  for (auto& e : chosen) {
    e = random_bits() % experts;
    if (random_bits() % 4 == 0) e = e * (random_bits() % 1000) / 1000;
    if (random_bits() % 16 == 0) e = random_bits() % 2 ? -1 : int32_t(experts + 3);
  }
  for (uint32_t e = 0; e < experts; e++)
    group_of[e] = renamed ? (e % 7 == 3 ? -1 : int32_t(experts - 1 - e)) : int32_t(e);
  Groups args = {upload(chosen),           n, used, experts, device<int32_t>(experts + 1), device<int32_t>(n * used),
                 device<int32_t>(n * used)};
  if (renamed) args.group_of = upload(group_of);
  MUST(group_by_expert(nullptr, args));
  MUST(cudaDeviceSynchronize());
  std::vector<int32_t> begin(experts + 1), slot_of(n * used, -1), token_of;
  for (uint32_t g = 0; g < experts; g++) {
    begin[g] = token_of.size();
    for (uint32_t s = 0; s < n * used; s++) {
      const int32_t e = chosen[s];
      if (e < 0 || e >= int32_t(experts) || group_of[e] != int32_t(g)) continue;
      slot_of[s] = token_of.size();
      token_of.push_back(s / used);
    }
  }
  begin[experts] = token_of.size();
  char name[96];
  snprintf(name, sizeof name, "group_by_expert %u x %u, %u experts%s", n, used, experts, renamed ? ", renamed" : "");
  expect(download(args.begin, experts + 1) == begin && download(args.slot_of, n * used) == slot_of &&
             download(args.token_of, token_of.size()) == token_of,
         name);

  const uint32_t hidden = 96;
  std::vector<bf16> y(size_t(n) * used * hidden);
  for (auto& v : y) v = __float2bfloat16(normal(1)[0]);
  const auto weight = normal(n * used);
  float* sum = device<float>(size_t(n) * hidden);
  MUST(gather_experts(nullptr, upload(y), args.slot_of, upload(weight), n, used, hidden, sum));
  MUST(cudaDeviceSynchronize());
  std::vector<double> want(size_t(n) * hidden);
  for (uint32_t s = 0; s < n * used; s++)
    for (uint32_t c = 0; c < hidden && slot_of[s] >= 0; c++)
      want[size_t(s / used) * hidden + c] += double(weight[s]) * wide_to_float(y[size_t(slot_of[s]) * hidden + c]);
  snprintf(name, sizeof name, "gather_experts %u x %u", n, used);
  expect(check::nmse(download(sum, want.size()), want) < 1e-12, name);
}

void times(double peak_gbs) {
  const uint32_t hidden = 7168, experts = 384;
  float *x = device<float>(32768ull * hidden), *a = device<float>(32768ull * 8);
  check::fill_normal(x, 32768ull * hidden, 1, 1);
  check::fill_normal(a, 32768ull * 8, 1, 2);
  printf("%-34s %10s %10s\n", "stage", "us", "GB/s");
  constexpr int kCopies = 28;  // 308 MB: five times the cache
  float* w = device<float>(size_t(kCopies) * experts * hidden);
  float* bias = device<float>(experts);
  check::fill_normal(w, size_t(kCopies) * experts * hidden, 0.01f, 4);
  check::fill_normal(bias, experts, 0.01f, 5);
  for (uint32_t n : {1u, 2u, 4u, 8u, 16u, 64u, 128u, 256u, 257u, 1024u, 4096u, 32768u}) {
    const RouterCase c = {n, hidden, experts, 8, 1, 1, true, true, DType::F32};
    Router args = make_router(c, w, bias, x);
    const double us = check::microseconds(n > 512 ? 4 : kCopies, [&](cudaStream_t s, int i) {
      args.w = w + size_t(i) * experts * hidden;
      MUST(route(s, args));
    });
    const double bytes = 4.0 * experts * hidden, flops = 2.0 * n * experts * hidden;
    printf("route F32, n %-21u %10.2f %10.0f  %.1f TFLOP/s\n", n, us, bytes / us / 1e3, flops / us / 1e6);
  }
  for (uint32_t n : {16u, 1024u, 32768u}) {
    const uint32_t used = 8;
    std::vector<int32_t> chosen(n * used);
    for (auto& e : chosen) e = random_bits() % experts;
    const Groups args = {
        upload(chosen),           n, used, experts, device<int32_t>(experts + 1), device<int32_t>(n * used),
        device<int32_t>(n * used)};
    const double us = check::microseconds(8, [&](cudaStream_t s, int) { MUST(group_by_expert(s, args)); });
    printf("group_by_expert, n %-15u %10.2f\n", n, us);
    bf16* y = device<bf16>(size_t(n) * used * hidden);
    MUST(cudaMemset(y, 0, size_t(n) * used * hidden * 2));
    const double gather = check::microseconds(
        4, [&](cudaStream_t s, int) { MUST(gather_experts(s, y, args.slot_of, a, n, used, hidden, x)); });
    printf("gather_experts, n %-16u %10.2f %10.0f  of %.0f\n", n, gather,
           double(n) * hidden * (used * 2 + 4) / gather / 1e3, peak_gbs);
    if (n < 32768) continue;
    const uint32_t width = 2048, rows = n * used / 2;
    const double silu = check::microseconds(
        4, [&](cudaStream_t s, int) { MUST(silu_mul(s, y, rows, width, y + size_t(rows) * 2 * width)); });
    printf("silu_mul, %-24u %10.2f %10.0f  of %.0f\n", rows, silu, double(rows) * width * 6 / silu / 1e3, peak_gbs);
  }
}

}  // namespace

int main(int count, char** words) {
  const bool small = count > 1 && !strcmp(words[1], "small");
  cudaDeviceProp properties;
  MUST(cudaGetDeviceProperties(&properties, 0));
  printf("%s\n", properties.name);
  check_router({1, 7168, 384, 8, 1, 1, true, true, DType::F32});
  check_router({4, 7168, 384, 8, 1, 1, true, true, DType::BF16});
  check_router({2, 8192, 400, 8, 1, 1, true, true, DType::F16});
  check_router({3, 7168, 256, 8, 8, 4, true, true, DType::F32});
  check_router({9, 256, 16, 4, 1, 1, true, true, DType::F32});
  check_router({33, 2048, 64, 6, 1, 1, false, false, DType::F16});
  check_router({5, 5120, 160, 6, 8, 3, false, false, DType::F32});
  check_router({257, 256, 16, 4, 4, 2, true, true, DType::F32});
  check_router({300, 2048, 64, 6, 1, 1, true, true, DType::BF16});
  if (!small) check_router({100, 7168, 384, 8, 1, 1, true, true, DType::F32});
  check_grouping(1, 8, 384, false);
  check_grouping(16, 4, 16, true);
  check_grouping(700, 6, 64, false);
  check_grouping(1000, 8, 384, true);
  check_grouping(300, 8, 512, false);
  if (!small) times(strstr(properties.name, "H200") ? 4300 : 3000);
  return check::done();
}
