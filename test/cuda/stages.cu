// Norms, latents and forms of rows against doubles; times beside the memory's. `stages small` leaves the times out, for
// the sanitizer.
#include "../../native/cuda/stages.h"
#include "rows.cuh"

using namespace perigee;
using namespace perigee::cuda;
using check::device;
using check::download;
using check::expect;
using check::forms_hold;
using check::make_rows;
using check::normal;
using check::upload;
using check::wide_to_float;

namespace {

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
    positions[t] = n > 1 && t == n / 2 ? -1 : int32_t((t * 29) % context);
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

void times(double peak_gbs) {
  const uint32_t hidden = 7168;
  float *x = device<float>(4096ull * hidden), *a = device<float>(4096ull * hidden), *weight = device<float>(hidden);
  check::fill_normal(x, 4096ull * hidden, 1, 1);
  check::fill_normal(a, 4096ull * hidden, 1, 2);
  check::fill_normal(weight, hidden, 1, 3);
  printf("%-34s %10s %10s\n", "stage", "us", "GB/s");
  for (uint32_t n : {1u, 4u, 16u, 4096u}) {
    const Rows out = make_rows(n, hidden);
    Rows few = out;  // as a step of few tokens asks for
    few.wide = nullptr;
    const auto time = [&](const Rows& forms) {
      return check::microseconds(40, [&](cudaStream_t s, int) {
        MUST(add_norm(s, {x, a, a, weight, 1e-6f, n, nullptr, forms}));
      });
    };
    const double us = time(out), bytes = double(n) * hidden * (12 + 4 + 4 + 2 + 1);
    printf("add_norm, all forms, n %-11u %10.2f %10.0f  of %.0f; without bf16 %.2f us\n", n, us, bytes / us / 1e3,
           peak_gbs, time(few));
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
  check_norms(2, 8192);
  check_latents(1, 1536, 512, 64);
  check_latents(19, 256, 256, 32);
  check_latents(7, 0, 512, 64);
  if (!small) times(strstr(properties.name, "H200") ? 4300 : 3000);
  return check::done();
}
