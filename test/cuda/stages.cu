// Norms, latents, the router, grouping and the exchange against doubles and the engine's own rules; times beside the
// memory's. `stages small` leaves the times out, for the sanitizer.
#include <string.h>

#include <atomic>
#include <thread>

#include "../../engine/quant/half.h"
#include "../../engine/router.h"
#include "../../native/cuda/stages.h"
#include "harness.cuh"

using namespace perigee;
using namespace perigee::cuda;
using check::device;
using check::download;
using check::expect;
using check::upload;

namespace {

std::mt19937 random_bits(7);
std::vector<float> normal(size_t count, float sigma = 1) {
  std::normal_distribution<float> of(0, sigma);
  std::vector<float> v(count);
  for (float& x : v) x = of(random_bits);
  return v;
}

Rows make_rows(uint32_t n, uint32_t cols) {
  const uint32_t padded = padded_cols(cols);
  Rows r = {cols,
            device<float>(size_t(n) * cols),
            device<bf16>(size_t(n) * cols),
            device<int8_t>(size_t(n) * padded),
            device<float>(size_t(n) * padded / 32),
            device<float>(size_t(n) * padded / 16)};
  MUST(cudaMemset(r.q, 77, size_t(n) * padded));
  MUST(cudaMemset(r.scale, 77, size_t(n) * padded / 8));
  MUST(cudaMemset(r.sum, 77, size_t(n) * padded / 4));
  return r;
}

float wide_to_float(bf16 x) {
  uint16_t bits;
  memcpy(&bits, &x, 2);
  return bf16_to_float(bits);
}

// All forms of `rows` against `want` [n][cols].
bool forms_hold(const Rows& rows, uint32_t n, const std::vector<double>& want) {
  const uint32_t cols = rows.cols, padded = padded_cols(cols);
  const auto f = download(rows.f32, size_t(n) * cols);
  const auto w = download(rows.wide, size_t(n) * cols);
  const auto q = download(rows.q, size_t(n) * padded);
  const auto scale = download(rows.scale, size_t(n) * padded / 32);
  const auto sum = download(rows.sum, size_t(n) * padded / 16);
  bool good = check::nmse(f, want) < 1e-11;
  for (size_t t = 0; t < n; t++) {
    for (size_t g = 0; g < padded / 32; g++) {
      float peak = 0;
      for (size_t c = 32 * g; c < 32 * g + 32 && c < cols; c++) peak = std::max(peak, std::fabs(f[t * cols + c]));
      const float s = scale[t * padded / 32 + g];
      good &= s == peak / 127;
      for (size_t half = 0; half < 2; half++) {
        int total = 0;
        for (size_t c = 32 * g + 16 * half; c < 32 * g + 16 * half + 16; c++) {
          const int8_t code = q[t * padded + c];
          total += code;
          if (c >= cols) {
            good &= code == 0;
          } else {
            good &= std::fabs(code * s - f[t * cols + c]) <= 0.5001f * s && code >= -127;
            good &= std::fabs(wide_to_float(w[t * cols + c]) - f[t * cols + c]) <= std::fabs(f[t * cols + c]) / 256;
          }
        }
        good &= sum[t * padded / 16 + 2 * g + half] == s * total;
      }
    }
  }
  return good;
}

void check_norms(uint32_t n, uint32_t cols) {
  char name[96];
  const auto x = normal(size_t(n) * cols, 3), a = normal(size_t(n) * cols), b = normal(size_t(n) * cols),
             weight = normal(cols);
  for (int mode = 0; mode < 3; mode++) {  // both summands, none, picked rows
    float* dx = upload(x);
    const std::vector<int32_t> picked = {int32_t(n) - 1, 0};
    const uint32_t m = mode == 2 ? std::min<uint32_t>(n, 2) : n;
    const Rows out = make_rows(m, cols);
    AddNorm args = {dx, nullptr, nullptr, upload(weight), 1e-5f, m, nullptr, out};
    if (mode == 0) args.a = upload(a), args.b = upload(b);
    if (mode == 2) args.rows = upload(picked);
    MUST(add_norm(nullptr, args));
    MUST(cudaDeviceSynchronize());
    std::vector<double> want(size_t(m) * cols), sums(x.begin(), x.end());
    if (mode == 0)
      for (size_t i = 0; i < x.size(); i++) sums[i] = double(x[i]) + a[i] + b[i];
    for (uint32_t t = 0; t < m; t++) {
      const double* row = &sums[size_t(mode == 2 ? picked[t] : t) * cols];
      double squares = 0;
      for (uint32_t c = 0; c < cols; c++) squares += row[c] * row[c];
      for (uint32_t c = 0; c < cols; c++) want[size_t(t) * cols + c] = row[c] / sqrt(squares / cols + 1e-5) * weight[c];
    }
    snprintf(name, sizeof name, "add_norm %u x %u, mode %d", n, cols, mode);
    expect(forms_hold(out, m, want) && check::nmse(download(dx, x.size()), sums) < 1e-12, name);
  }
  const Rows mid = make_rows(n, cols);
  MUST(silu_mul(nullptr, upload(x), upload(a), n, mid));
  MUST(cudaDeviceSynchronize());
  std::vector<double> want(x.size());
  for (size_t i = 0; i < x.size(); i++) want[i] = x[i] / (1 + exp(-double(x[i]))) * a[i];
  snprintf(name, sizeof name, "silu_mul to forms %u x %u", n, cols);
  expect(forms_hold(mid, n, want), name);
  Rows again = make_rows(n, cols);
  again.f32 = mid.f32;
  MUST(fill_forms(nullptr, again, n));
  MUST(cudaDeviceSynchronize());
  snprintf(name, sizeof name, "fill_forms %u x %u", n, cols);
  expect(forms_hold(again, n, want), name);

  std::vector<bf16> pairs(size_t(n) * 2 * cols);
  for (bf16& p : pairs) p = __float2bfloat16(normal(1)[0]);
  bf16* out = device<bf16>(size_t(n) * cols);
  MUST(silu_mul(nullptr, upload(pairs), n, cols, out));
  MUST(cudaDeviceSynchronize());
  const auto got = download(out, size_t(n) * cols);
  std::vector<float> wide(got.size());
  for (size_t i = 0; i < got.size(); i++) {
    const double g = wide_to_float(pairs[i / cols * 2 * cols + i % cols]),
                 u = wide_to_float(pairs[i / cols * 2 * cols + cols + i % cols]);
    want[i] = g / (1 + exp(-g)) * u;
    wide[i] = wide_to_float(got[i]);
  }
  snprintf(name, sizeof name, "silu_mul wide %u x %u", n, cols);
  expect(check::nmse(wide, want) < 1e-5, name);
}

void check_latents(uint32_t n, uint32_t q_rank, uint32_t kv_rank, uint32_t rope_dim) {
  const uint32_t page_tokens = 64, stride = 5, sequences = 3, context = stride * page_tokens,
                 latent = kv_rank + rope_dim, width = q_rank + latent;
  const auto qkv = normal(size_t(n) * width), q_norm = normal(q_rank), kv_norm = normal(kv_rank),
             rope = normal(size_t(context) * rope_dim);
  std::vector<int32_t> tables(sequences * stride), seqs(n), positions(n);
  for (size_t i = 0; i < tables.size(); i++) tables[i] = int32_t(tables.size() - 1 - i);
  for (uint32_t t = 0; t < n; t++) {
    seqs[t] = t % sequences;
    positions[t] = t == n / 2 ? -1 : int32_t((t * 29) % context);
  }
  bf16* pages = device<bf16>(size_t(sequences) * stride * page_tokens * latent);
  MUST(cudaMemset(pages, 0, size_t(sequences) * stride * page_tokens * latent * 2));
  const Rows query = make_rows(n, std::max(q_rank, 32u));
  MUST(store_latents(
      nullptr, {upload(qkv), upload(q_norm), upload(kv_norm), 1e-6f, upload(rope), upload(seqs), upload(positions),
                upload(tables), stride, page_tokens, q_rank, kv_rank, rope_dim, n, pages, query}));
  MUST(cudaDeviceSynchronize());
  const auto got = download(pages, size_t(sequences) * stride * page_tokens * latent);
  std::vector<double> want(got.size());
  std::vector<float> have(got.size());
  for (size_t i = 0; i < got.size(); i++) have[i] = wide_to_float(got[i]);
  std::vector<double> queries(size_t(n) * q_rank);
  const auto norm = [](const float* x, uint32_t cols, const std::vector<float>& w, double* to) {
    double squares = 0;
    for (uint32_t c = 0; c < cols; c++) squares += double(x[c]) * x[c];
    for (uint32_t c = 0; c < cols; c++) to[c] = x[c] / sqrt(squares / cols + 1e-6) * w[c];
  };
  for (uint32_t t = 0; t < n; t++) {
    const float* row = &qkv[size_t(t) * width];
    norm(row, q_rank, q_norm, &queries[size_t(t) * q_rank]);
    if (positions[t] < 0) continue;
    const int32_t page = tables[seqs[t] * stride + positions[t] / page_tokens];
    double* to = &want[(size_t(page) * page_tokens + positions[t] % page_tokens) * latent];
    norm(row + q_rank, kv_rank, kv_norm, to);
    for (uint32_t c = 0; c < rope_dim; c += 2) {
      const double x = row[q_rank + kv_rank + c], y = row[q_rank + kv_rank + c + 1];
      const double cosine = rope[size_t(positions[t]) * rope_dim + c],
                   sine = rope[size_t(positions[t]) * rope_dim + c + 1];
      to[kv_rank + c] = x * cosine - y * sine;
      to[kv_rank + c + 1] = x * sine + y * cosine;
    }
  }
  char name[96];
  snprintf(name, sizeof name, "store_latents %u x (%u, %u, %u)", n, q_rank, kv_rank, rope_dim);
  expect(check::nmse(have, want) < 1e-5 && (q_rank == 0 || forms_hold(query, n, queries)), name);

  const uint32_t heads = 3, nope = 32, head = nope + rope_dim;
  const auto q = normal(size_t(n) * heads * head);
  bf16* roped = device<bf16>(q.size());
  MUST(rope_queries(nullptr, upload(q), upload(rope), upload(positions), n, heads, nope, rope_dim, roped));
  MUST(cudaDeviceSynchronize());
  const auto wide = download(roped, q.size());
  std::vector<double> turned(q.begin(), q.end());
  for (size_t row = 0; row < size_t(n) * heads; row++)
    for (uint32_t c = 0; c < rope_dim; c += 2) {
      if (positions[row / heads] < 0) continue;
      double* at = &turned[row * head + nope + c];
      const float* turn = &rope[size_t(positions[row / heads]) * rope_dim + c];
      const double x = at[0], y = at[1];
      at[0] = x * turn[0] - y * turn[1];
      at[1] = x * turn[1] + y * turn[0];
    }
  std::vector<float> floats(q.size());
  for (size_t i = 0; i < q.size(); i++) floats[i] = wide_to_float(wide[i]);
  snprintf(name, sizeof name, "rope_queries %u", n);
  expect(check::nmse(floats, turned) < 1e-5, name);
}

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

// --- the exchange: this program's thread plays the ranks -------------------------------------------------------------------

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

void times(double peak_gbs) {
  const uint32_t hidden = 7168, experts = 384;
  float *x = device<float>(32768ull * hidden), *a = device<float>(32768ull * hidden), *weight = device<float>(hidden);
  check::fill_normal(x, 32768ull * hidden, 1, 1);
  check::fill_normal(a, 32768ull * hidden, 1, 2);
  check::fill_normal(weight, hidden, 1, 3);
  printf("%-34s %10s %10s\n", "stage", "us", "GB/s");
  for (uint32_t n : {1u, 4u, 16u, 4096u}) {
    const Rows out = make_rows(n, hidden);
    const double us = check::microseconds(40, [&](cudaStream_t s, int) {
      MUST(add_norm(s, {x, a, a, weight, 1e-6f, n, nullptr, out}));
    });
    const double bytes = double(n) * hidden * (12 + 4 + 4 + 2 + 1);
    printf("add_norm, all forms, n %-11u %10.2f %10.0f  of %.0f\n", n, us, bytes / us / 1e3, peak_gbs);
  }
  {
    const uint32_t q_rank = 1536, kv = 512, rope_dim = 64;
    std::vector<int32_t> zeros(64);
    for (int i = 0; i < 64; i++) zeros[i] = i;
    int32_t *positions = upload(zeros), *seqs = upload(std::vector<int32_t>(64)),
            *tables = upload(std::vector<int32_t>(8));
    bf16* pages = device<bf16>(64 * 576 * 8);
    for (uint32_t n : {1u, 16u}) {
      const Rows query = make_rows(n, q_rank);
      const double us = check::microseconds(40, [&](cudaStream_t s, int) {
        MUST(store_latents(
            s, {x, weight, weight, 1e-6f, a, seqs, positions, tables, 8, 64, q_rank, kv, rope_dim, n, pages, query}));
      });
      printf("store_latents, n %-17u %10.2f\n", n, us);
    }
  }
  constexpr int kCopies = 28;  // 308 MB: five times the cache
  float* w = device<float>(size_t(kCopies) * experts * hidden);
  float* bias = device<float>(experts);
  check::fill_normal(w, size_t(kCopies) * experts * hidden, 0.01f, 4);
  check::fill_normal(bias, experts, 0.01f, 5);
  for (uint32_t n : {1u, 2u, 4u, 8u, 16u, 64u, 128u, 512u, 4096u, 32768u}) {
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
  check_norms(1, 7168);
  check_norms(3, 256);
  check_norms(5, 1408);
  check_norms(2, 96);
  check_norms(2, 18432 / 2);
  check_latents(1, 1536, 512, 64);
  check_latents(19, 256, 256, 32);
  check_latents(7, 0, 512, 64);
  check_router({1, 7168, 384, 8, 1, 1, true, true, DType::F32});
  check_router({4, 7168, 384, 8, 1, 1, true, true, DType::BF16});
  check_router({3, 7168, 256, 8, 8, 4, true, true, DType::F32});
  check_router({9, 256, 16, 4, 1, 1, true, true, DType::F32});
  check_router({33, 2048, 64, 6, 1, 1, false, false, DType::F16});
  check_router({5, 5120, 160, 6, 8, 3, false, false, DType::F32});
  check_router({65, 256, 16, 4, 4, 2, true, true, DType::F32});
  check_router({130, 2048, 64, 6, 1, 1, true, true, DType::BF16});
  if (!small) check_router({100, 7168, 384, 8, 1, 1, true, true, DType::F32});
  check_grouping(1, 8, 384, false);
  check_grouping(16, 4, 16, true);
  check_grouping(700, 6, 64, false);
  check_grouping(1000, 8, 384, true);
  check_grouping(300, 8, 512, false);
  check_exchange(1, small ? 10 : 2000);
  check_exchange(5, small ? 10 : 500);
  if (!small) {
    times(strstr(properties.name, "H200") ? 4300 : 3000);
    for (double us : {0.0, 50.0, 400.0}) time_exchange(1, us);
    time_exchange(4, 0);
    time_exchange(16, 0);
  }
  return check::done();
}
